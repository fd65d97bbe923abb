(** Does the state stay bounded when nothing is written?  Over the reals, or
    any ordered domain: the step of key-axis erase stretches by at most
    2/sqrt(3), and can (STAB-1); products of such steps can grow for ever
    (STAB-2); with gates constant in time, with enough decay, with erase on the
    value axis or by one number, nothing grows (STAB-3 to STAB-6). *)
From carve Require Import recurrence chunk column wy columns segment.
Import Order.TTheory Num.Theory.

Section Ring.
Variables (R : comRingType) (K : nat).
Implicit Types x y z k b r : 'cV[R]_K.

Definition dot x y := \sum_i x i 0 * y i 0.
(** |x|^2, and |x|^2 weighted by diag(b). *)
Definition norm2 x := dot x x.
Definition weighted_norm2 b x := \sum_i b i 0 * x i 0 ^+ 2.

(** What one token does to a column: I - k r^T. *)
Definition erase k r : 'M[R]_K := 1%:M - k *m r^T.

Lemma eraseE k r x i : (erase k r *m x) i 0 = x i 0 - k i 0 * dot r x.
Proof. by rewrite mulmxBl mul1mx subE outer_mulE. Qed.

Lemma dotC x y : dot x y = dot y x.
Proof. by apply: eq_bigr => i _; rewrite mulrC. Qed.

Let expand (c1 c2 c3 x y z : R) :
  (c1 * x + c2 * y + c3 * z) * (c1 * x + c2 * y + c3 * z) =
  c1 ^+ 2 * (x * x) + c2 ^+ 2 * (y * y) + c3 ^+ 2 * (z * z)
  + c1 * c2 *+ 2 * (x * y) + c1 * c3 *+ 2 * (x * z) + c2 * c3 *+ 2 * (y * z).
Proof. by ring. Qed.

Lemma norm2_combination (c1 c2 c3 : R) x y z :
  norm2 (c1 *: x + c2 *: y + c3 *: z) =
  c1 ^+ 2 * norm2 x + c2 ^+ 2 * norm2 y + c3 ^+ 2 * norm2 z
  + c1 * c2 *+ 2 * dot x y + c1 * c3 *+ 2 * dot x z + c2 * c3 *+ 2 * dot y z.
Proof.
rewrite /norm2 /dot !mulr_sumr -!big_split; apply: eq_bigr => i _.
by rewrite !addE !scaleE expand.
Qed.

Lemma erase_combination k r x :
  erase k r *m x = 1 *: x + (- dot r x) *: k + 0 *: k.
Proof.
by apply/colP=> i; rewrite eraseE !addE !scaleE mul1r mul0r addr0 mulNr mulrC.
Qed.

Lemma norm2_erase k r x : norm2 (erase k r *m x) =
  norm2 x - dot k x * dot r x *+ 2 + dot r x ^+ 2 * norm2 k.
Proof.
rewrite erase_combination norm2_combination (dotC x k).
move: (norm2 x) (norm2 k) (dot k x) (dot r x) (dot k k) => X kk p y c.
by ring.
Qed.

(** STAB-3, the identity: for erase by b * k the slack is (2 - k.r) (r.x)^2. *)
Lemma weighted_norm2_erase b k x :
  weighted_norm2 b (erase k (b .* k) *m x) =
  weighted_norm2 b x - (2%:R - dot k (b .* k)) * dot (b .* k) x ^+ 2.
Proof.
set y := dot (b .* k) x.
have -> : weighted_norm2 b (erase k (b .* k) *m x) =
    weighted_norm2 b x + (- (y *+ 2) * y + y ^+ 2 * dot k (b .* k)).
  rewrite {2}/y /dot /weighted_norm2 !mulr_sumr -!big_split.
  apply: eq_bigr => i _; rewrite eraseE -/y !elementwiseE.
  by move: (b i 0) (x i 0) (k i 0) y => b' x' k' y' /=; ring.
congr (_ + _); move: (dot k _) y => s y; ring.
Qed.

End Ring.

Section Ordered.
Variables (R : realDomainType) (K : nat).
Implicit Types x y k b a r : 'cV[R]_K.

Lemma norm2_ge0 x : 0 <= norm2 x.
Proof. by apply: sumr_ge0 => i _; rewrite -expr2 sqr_ge0. Qed.

Lemma norm2_eq0 x y : norm2 x = 0 -> dot x y = 0.
Proof.
move=> x0; apply: big1 => i _.
have : x i 0 * x i 0 = 0.
  by apply: (psumr_eq0P _ x0) => // j _; rewrite -expr2 sqr_ge0.
by move=> /eqP; rewrite mulf_eq0 orbb => /eqP ->; rewrite mul0r.
Qed.

(** Gates between 0 and c. *)
Definition between0 c b := forall i, 0 <= b i 0 <= c.

Lemma decay_shrinks a x : between0 1 a -> norm2 (diag a *m x) <= norm2 x.
Proof.
move=> a01; apply: ler_sum => i _; rewrite diag_mulE -!expr2 exprMn.
have /andP[a0 a1] := a01 i.
by rewrite ler_pimull ?sqr_ge0 // expr_le1.
Qed.

Let le_of_eq (y z : R) : y = z -> y <= z. Proof. by move=> ->. Qed.

Let gram (X p y s m : R) : m <= s ->
  0 <= (s - s ^+ 2) ^+ 2 * X + (- (s * (p - y))) ^+ 2 * 1
       + (- (y - s * p)) ^+ 2 * m
       + (s - s ^+ 2) * (- (s * (p - y))) *+ 2 * p
       + (s - s ^+ 2) * (- (y - s * p)) *+ 2 * y
       + (- (s * (p - y))) * (- (y - s * p)) *+ 2 * s ->
  0 <= (s - s ^+ 2) * ((s - s ^+ 2) * X
                       - (s * p ^+ 2 - s * p * y *+ 2 + y ^+ 2)).
Proof.
move=> ms H; have nn : 0 <= (s - m) * (y - s * p) ^+ 2.
  by rewrite mulr_ge0 ?sqr_ge0 // subr_ge0.
by apply: le_trans (addr_ge0 H nn) _; apply: le_of_eq; ring.
Qed.

Let squares (p y s : R) :
  s * p ^+ 2 - s * p * y *+ 2 + y ^+ 2
    + (s - s ^+ 2) * (p * y *+ 6 - y ^+ 2 *+ 3) =
  s * (p + (2%:R - s *+ 3) * y) ^+ 2
    + (1 - s) * ((1 - s *+ 3) * y) ^+ 2.
Proof. by ring. Qed.

(** STAB-1: one step stretches |x|^2 by at most 4/3. *)
Theorem erase_stretch k b x : norm2 k = 1 -> between0 1 b ->
  norm2 (erase k (b .* k) *m x) *+ 3 <= norm2 x *+ 4.
Proof.
move=> k1 b01; set r := b .* k.
set X := norm2 x; set p := dot k x; set y := dot r x.
set s := dot k r; set m := norm2 r.
have m0 : 0 <= m := norm2_ge0 r.
have ms : m <= s.
  apply: ler_sum => i _; rewrite !elementwiseE.
  have /andP[b0 b1] := b01 i.
  have -> : b i 0 * k i 0 * (b i 0 * k i 0) = b i 0 * (b i 0 * k i 0 ^+ 2).
    by move: (b i 0) (k i 0) => b' k'; ring.
  have -> : k i 0 * (b i 0 * k i 0) = b i 0 * k i 0 ^+ 2.
    by move: (b i 0) (k i 0) => b' k'; ring.
  by rewrite ler_pimull // mulr_ge0 ?sqr_ge0.
have s0 : 0 <= s := le_trans m0 ms.
have s2m : s ^+ 2 <= m.
  have := norm2_ge0 (1 *: r + (- s) *: k + 0 *: k).
  rewrite norm2_combination k1 (dotC r k) -/s -/m.
  move=> H; rewrite -subr_ge0; apply: le_trans H _.
  by apply: le_of_eq; move: (dot k k) => c; ring.
have s1 : s <= 1.
  rewrite leNgt; apply/negP => lt1; have := le_trans s2m ms.
  by rewrite expr2 ger_pmulr ?(lt_trans ltr01) // leNgt lt1.
rewrite norm2_erase k1 mulr1 -/X -/p -/y -subr_ge0.
have -> : X *+ 4 - (X - p * y *+ 2 + y ^+ 2) *+ 3 =
          X + (p * y *+ 6 - y ^+ 2 *+ 3) by ring.
have X0 : 0 <= X := norm2_ge0 x.
have [sz|snz] := eqVneq s 0.
  have -> : y = 0.
    by apply: norm2_eq0; apply/eqP; rewrite eq_le -/m m0 andbT -sz.
  by rewrite mulr0 expr0n /= !mul0rn subr0 addr0.
have [so|sno] := eqVneq s 1.
  have E : y = p.
    have z : norm2 (1 *: r + (-1) *: k + 0 *: k) = 0.
      rewrite norm2_combination k1 (dotC r k) -/s so -/m.
      have -> : m = 1 by apply/eqP; rewrite eq_le -{1}so ms -{1}(expr1n _ 2) -so s2m.
      by move: (dot k k) => c; ring.
    have := norm2_eq0 x z; rewrite /dot.
    under eq_bigr do rewrite !addE !scaleE mul1r mul0r addr0 mulN1r mulrBl.
    by rewrite sumrB => /eqP; rewrite subr_eq0 => /eqP.
  rewrite E -expr2 addr_ge0 // -mulrnBr // mulrn_wge0 //.
  by rewrite sqr_ge0.
have d0 : 0 < s - s ^+ 2.
  rewrite expr2 -{1}[s]mulr1 -mulrBr mulr_gt0 ?subr_gt0 ?lt_neqAle ?sno //.
  by rewrite eq_sym snz.
have G : (s - s ^+ 2) * X >= s * p ^+ 2 - s * p * y *+ 2 + y ^+ 2.
  rewrite -subr_ge0 -(pmulr_rge0 _ d0); apply: gram ms _.
  have := norm2_ge0 ((s - s ^+ 2) *: x + (- (s * (p - y))) *: k
                     + (- (y - s * p)) *: r).
  by rewrite norm2_combination k1 (dotC x k) (dotC x r).
rewrite -(pmulr_rge0 _ d0) mulrDr.
rewrite -(ler_add2r ((s - s ^+ 2) * (p * y *+ 6 - y ^+ 2 *+ 3))) in G.
apply: le_trans G; rewrite squares.
by rewrite addr_ge0 // mulr_ge0 ?sqr_ge0 // subr_ge0.
Qed.

(** STAB-3: gates b constant in time, in [0,2], keys of length at most one. *)
Theorem erase_weighted_contracts k b x : norm2 k <= 1 -> between0 2%:R b ->
  weighted_norm2 b (erase k (b .* k) *m x) <= weighted_norm2 b x.
Proof.
move=> k1 b02; rewrite weighted_norm2_erase ler_subl_addr ler_addl.
rewrite mulr_ge0 ?sqr_ge0 // subr_ge0.
apply: le_trans (_ : 2%:R * norm2 k <= _); last by rewrite ler_pimulr ?ler0n.
rewrite mulr_sumr; apply: ler_sum => i _; rewrite elementwiseE.
have /andP[b0 b2] := b02 i; rewrite mulrCA ler_wpmul2r //.
by rewrite -expr2 sqr_ge0.
Qed.

Lemma decay_weighted_shrinks a b x : (forall i, 0 <= b i 0) -> between0 1 a ->
  weighted_norm2 b (diag a *m x) <= weighted_norm2 b x.
Proof.
move=> b0 a01; apply: ler_sum => i _; rewrite diag_mulE exprMn ler_wpmul2l //.
by have /andP[a0 a1] := a01 i; rewrite ler_pimull ?sqr_ge0 // expr_le1.
Qed.

(** STAB-4: after a decay with a^2 <= 3/4 on every channel, whatever the gates
    in [0,1], a step does not stretch. *)
Theorem decay_restores_contraction k b a x : norm2 k = 1 -> between0 1 b ->
  (forall i, a i 0 ^+ 2 *+ 4 <= 3%:R) ->
  norm2 (erase k (b .* k) *m (diag a *m x)) <= norm2 x.
Proof.
move=> k1 b01 a34; rewrite -(@ler_pmuln2r _ 3) //.
apply: le_trans (erase_stretch _ k1 b01) _; rewrite -!sumrMnl.
apply: ler_sum => i _; rewrite diag_mulE.
have -> : a i 0 * x i 0 * (a i 0 * x i 0) *+ 4 = a i 0 ^+ 2 *+ 4 * x i 0 ^+ 2.
  by move: (a i 0) (x i 0) => a' x'; ring.
by rewrite -expr2 -[_ *+ 3]mulr_natl ler_wpmul2r ?sqr_ge0.
Qed.

(** STAB-5, STAB-6: erase by one number g in [0,2] for all key channels. *)
Theorem erase_scalar_contracts k (g : R) x :
  norm2 k <= 1 -> 0 <= g <= 2%:R ->
  norm2 (erase k (g *: k) *m x) <= norm2 x.
Proof.
move=> k1 /andP[g0 g2]; rewrite norm2_erase.
have -> : dot (g *: k) x = g * dot k x.
  by rewrite /dot mulr_sumr; apply: eq_bigr => i _; rewrite scaleE mulrA.
set p := dot k x; have k0 := norm2_ge0 k.
have -> : norm2 x - p * (g * p) *+ 2 + (g * p) ^+ 2 * norm2 k =
          norm2 x - g * (2%:R - g * norm2 k) * p ^+ 2.
  by move: (norm2 x) (norm2 k) p => X kk p'; ring.
rewrite ler_subl_addr ler_addl mulr_ge0 ?sqr_ge0 // mulr_ge0 // subr_ge0.
by apply: le_trans g2; rewrite ler_pimulr.
Qed.

End Ordered.

Section Histories.
(** Whole histories with nothing written, column by column; decays in [0,1]. *)
Variables (R : realDomainType) (K V : nat).
Implicit Types (x : nat -> token R K V) (S : 'M[R]_(K, V)).

Definition writes_nothing (y : token R K V) := w y .* v y = 0.

Lemma col_step (y : token R K V) S j : writes_nothing y ->
  col j (step y S) = d y j 0 *:
    (erase (k y) (e y j 0 *: address y) *m (diag (a y) *m col j S)).
Proof.
move=> nothing; rewrite -token_mapP col_apply [A _ _]/= [B _]/= nothing.
rewrite linear0 mulmx0 linear0 addr0 -scalemxAl -mulmxA.
by [].
Qed.

Lemma norm2_scale (c : R) (z : 'cV[R]_K) : 0 <= c <= 1 ->
  norm2 (c *: z) <= norm2 z.
Proof.
case/andP=> c0 c1; apply: ler_sum => i _; rewrite scaleE -!expr2 exprMn.
by rewrite ler_pimull ?sqr_ge0 // expr_le1.
Qed.

Lemma never_grows (m : 'cV[R]_K -> R) x S0 j T :
  (forall t S, m (col j (step (x t) S)) <= m (col j S)) ->
  m (col j (state x S0 T)) <= m (col j S0).
Proof. by move=> H; elim: T => //= t IH; exact: le_trans (H t _) IH. Qed.

Variables (x : nat -> token R K V) (S0 : 'M[R]_(K, V)).
Hypothesis nothing : forall t, writes_nothing (x t).
Hypothesis decays : forall t, between0 1 (a (x t)) /\ between0 1 (d (x t)).

(** STAB-3, over a history: key-axis erase by gates b that stay the same. *)
Theorem constant_gates_contract (b0 : 'cV[R]_K) T j :
  between0 2%:R b0 ->
  (forall t, [/\ b (x t) = b0, e (x t) = ones & norm2 (k (x t)) <= 1]) ->
  weighted_norm2 b0 (col j (state x S0 T)) <= weighted_norm2 b0 (col j S0).
Proof.
move=> b02 H; apply: (never_grows (m := weighted_norm2 b0)) => t S.
have [Eb Ee k1] := H t; have [a01 d01] := decays t.
rewrite col_step // Ee [ones _ _]mxE scale1r /address Eb.
apply: le_trans (decay_weighted_shrinks _ _ a01); last first.
  by move=> i; case/andP: (b02 i).
apply: le_trans (erase_weighted_contracts _ k1 b02).
apply: ler_sum => i _; rewrite scaleE exprMn ler_wpmul2l //.
  by case/andP: (b02 i).
by have /andP[d0 d1] := d01 j; rewrite ler_pimull ?sqr_ge0 // expr_le1.
Qed.

(** STAB-4, over a history. *)
Theorem decayed_history_contracts T j :
  (forall t, [/\ between0 1 (b (x t)), e (x t) = ones, norm2 (k (x t)) = 1 &
    forall i, a (x t) i 0 ^+ 2 *+ 4 <= 3%:R]) ->
  norm2 (col j (state x S0 T)) <= norm2 (col j S0).
Proof.
move=> H; apply: (never_grows (m := @norm2 R K)) => t S.
have [b01 Ee k1 a34] := H t; have [_ d01] := decays t.
rewrite col_step // Ee [ones _ _]mxE scale1r.
exact: le_trans (norm2_scale _ (d01 j)) (decay_restores_contraction _ k1 b01 a34).
Qed.

(** STAB-5, over a history: value-axis erase. *)
Theorem value_gates_contract T j :
  (forall t, [/\ b (x t) = ones, between0 2%:R (e (x t)) &
                 norm2 (k (x t)) <= 1]) ->
  norm2 (col j (state x S0 T)) <= norm2 (col j S0).
Proof.
move=> H; apply: (never_grows (m := @norm2 R K)) => t S.
have [Eb e02 k1] := H t; have [a01 d01] := decays t.
rewrite col_step // /address Eb elementwise_ones.
apply: le_trans (norm2_scale _ (d01 j)) _.
exact: le_trans (erase_scalar_contracts _ k1 (e02 j)) (decay_shrinks _ a01).
Qed.

(** STAB-6, over a history: one number beta a token for all channels. *)
Theorem scalar_gate_contracts T j :
  (forall t, exists beta : R, [/\ b (x t) = const_mx beta,
    0 <= beta <= 2%:R, e (x t) = ones & norm2 (k (x t)) <= 1]) ->
  norm2 (col j (state x S0 T)) <= norm2 (col j S0).
Proof.
move=> H; apply: (never_grows (m := @norm2 R K)) => t S.
have [beta [Eb beta02 Ee k1]] := H t; have [a01 d01] := decays t.
rewrite col_step // Ee [ones _ _]mxE scale1r /address Eb.
have -> : const_mx beta .* k (x t) = beta *: k (x t).
  by apply/colP=> i; rewrite !mxE.
apply: le_trans (norm2_scale _ (d01 j)) _.
exact: le_trans (erase_scalar_contracts _ k1 beta02) (decay_shrinks _ a01).
Qed.

End Histories.

Section Real.
(** STAB-1 with the norm itself, and the case of equality. *)
Variable R : rcfType.

Definition norm K (x : 'cV[R]_K) := Num.sqrt (norm2 x).

Theorem erase_norm K (k b x : 'cV[R]_K) : norm k = 1 -> between0 1 b ->
  norm (erase k (b .* k) *m x) <= 2%:R / Num.sqrt 3%:R * norm x.
Proof.
move=> nk b01; have k1 : norm2 k = 1.
  by rewrite -[LHS]sqr_sqrtr ?norm2_ge0 // -/(norm k) nk expr1n.
have -> : 2%:R / Num.sqrt 3%:R = Num.sqrt (4%:R / 3%:R) :> R.
  rewrite sqrtrM ?ler0n // sqrtrV ?ler0n //; congr (_ / _).
  by rewrite (_ : 4%:R = 2%:R ^+ 2) ?sqrtr_sqr ?ger0_norm ?ler0n -?natrX.
rewrite -sqrtrM; last by rewrite divr_ge0 ?ler0n.
apply: ler_wsqrtr; rewrite mulrAC ler_pdivl_mulr ?ltr0n //.
by rewrite mulr_natr mulr_natl; exact: erase_stretch.
Qed.

Definition stretch_key : 'cV[R]_3 := const_mx (Num.sqrt 3%:R)^-1.
Definition stretch_gate : 'cV[R]_3 := \col_i (if i == 0 then 1 else 0).
Definition stretched : 'cV[R]_3 := \col_i (if i == 0 then 1 else -1).

Theorem stretch_reached :
  [/\ norm stretch_key = 1, between0 1 stretch_gate, norm stretched != 0 &
  norm (erase stretch_key (stretch_gate .* stretch_key) *m stretched)
    = 2%:R / Num.sqrt 3%:R * norm stretched].
Proof.
have c2 : (Num.sqrt 3%:R)^-1 * (Num.sqrt 3%:R)^-1 = 3%:R^-1 :> R.
  by rewrite -invfM -expr2 sqr_sqrtr ?ler0n.
have three : 3%:R != 0 :> R by rewrite pnatr_eq0.
have n3 : norm2 stretched = 3%:R.
  by rewrite /norm2 /dot !big_ord_recl big_ord0 !mxE /=; ring.
have n4 : norm2 (erase stretch_key (stretch_gate .* stretch_key) *m stretched)
    = 4%:R.
  have E i : (erase stretch_key (stretch_gate .* stretch_key) *m stretched) i 0
      = stretched i 0 - 3%:R^-1.
    rewrite eraseE /dot !big_ord_recl big_ord0 !mxE /=.
    by rewrite !(mul1r, mul0r, mulr1, addr0) c2.
  rewrite /norm2 /dot !big_ord_recl big_ord0 !E !mxE /=.
  by field.
split.
- rewrite /norm /norm2 /dot !big_ord_recl big_ord0 !mxE c2.
  rewrite [X in Num.sqrt X](_ : _ = 1) ?sqrtr1 //; by field.
- by move=> i; rewrite mxE; case: ifP; rewrite ?ler01 ?lexx.
- by rewrite /norm n3 sqrtr_eq0 -ltNge ltr0n.
rewrite /norm n3 n4 mulfVK ?sqrtr_eq0 -?ltNge ?ltr0n //.
by rewrite (_ : 4%:R = 2%:R ^+ 2) ?sqrtr_sqr ?ger0_norm ?ler0n -?natrX.
Qed.

End Real.

Section Growth.
(** STAB-2: two tokens in turn, unit keys, binary gates, no decay, nothing
    written; the state grows without bound. *)
Variable R : realFieldType.
Local Notation "p %/% q" := (p%:R / q%:R : R) (at level 40).

Definition two (y z : R) : 'cV[R]_2 := \col_i (if i == 0 then y else z).
Definition silent k b : token R 2 1 := Token 0 k ones b 0 ones ones 0.
Definition first_token := silent (two (3 %/% 5) (4 %/% 5)) (two 1 0).
Definition second_token := silent (two (4 %/% 5) (3 %/% 5)) (two 0 1).
Definition in_turn t := if odd t then second_token else first_token.

Lemma silent_stepE k b S i : (step (silent k b) S) i 0 =
  S i 0 - k i 0 * (b 0 0 * k 0 0 * S 0 0 + b 1 0 * k 1 0 * S 1 0).
Proof.
have two_terms (f : 'I_2 -> R) : \sum_i f i = f 0 + f 1.
  by rewrite !big_ord_recl big_ord0 addr0; congr (_ + f _); exact: val_inj.
rewrite stepE updateE two_terms !decayedE /address !elementwiseE /=.
by rewrite !mxE; move: (S i 0) (S 0 0) (S 1 0) (k i 0) (k 0 0) (k 1 0)
  (b 0 0) (b 1 0) => *; ring.
Qed.

Lemma twice S : let S2 := step second_token (step first_token S) in
  S2 0 0 = (544%:R * S 0 0 - 300%:R * S 1 0) / 625%:R /\
  S2 1 0 = (400%:R * S 1 0 - 192%:R * S 0 0) / 625%:R.
Proof.
have five : 5%:R != 0 :> R by rewrite pnatr_eq0.
have big : 625%:R != 0 :> R by rewrite pnatr_eq0.
rewrite /= !silent_stepE !mxE /=.
by move: (S 0 0) (S 1 0) => y z; split; field.
Qed.

Let start : 'M[R]_(2, 1) := two 1 (-1).
Let S n := state in_turn start (n.*2).
Let rate := 23 %/% 20.

Lemma S_next n : S n.+1 = step second_token (step first_token (S n)).
Proof.
by rewrite /S doubleS /state /= /in_turn /= odd_double.
Qed.

Lemma S_cone n : [/\ 0 <= S n 0 0, 0 <= - S n 1 0 &
  193%:R * rate ^+ n <= 100%:R * S n 0 0 + 93%:R * - S n 1 0].
Proof.
have big : 0 < 625%:R :> R by rewrite ltr0n.
elim: n => [|n [y0 z0 H]].
  by rewrite /S /= !mxE /= opprK ler01 expr0 !mulr1 -natrD.
have [E0 E1] := twice (S n); rewrite -S_next in E0 E1; rewrite E0 E1.
move: (S n 0 0) (S n 1 0) y0 z0 H => y z y0 z0 H.
split.
- by rewrite divr_ge0 ?ler0n // -mulrN addr_ge0 // mulr_ge0 ?ler0n.
- rewrite -[- (_ / _)]mulNr opprB divr_ge0 ?ler0n // -mulrN addr_ge0 //.
    by rewrite mulr_ge0 ?ler0n.
  by rewrite mulr_ge0 ?ler0n.
apply: le_trans (_ : rate * (100%:R * y + 93%:R * - z) <= _).
  by rewrite exprS mulrCA ler_wpmul2l // divr_ge0 ?ler0n.
rewrite -subr_ge0.
have -> : 100%:R * ((544%:R * y - 300%:R * z) / 625%:R)
    + 93%:R * - ((400%:R * z - 192%:R * y) / 625%:R)
    - rate * (100%:R * y + 93%:R * - z)
    = (1524%:R * y + 1425%:R * - z) / 2500%:R.
  rewrite /rate; field.
  by rewrite ?intr_eq0 ?pnatr_eq0.
by rewrite divr_ge0 ?ler0n // addr_ge0 // mulr_ge0 ?ler0n.
Qed.

(** After 2n tokens |S|^2 is at least (23/20)^(2n). *)
Theorem grows_without_bound n :
  rate ^+ n.*2 <= norm2 (state in_turn start n.*2).
Proof.
have [y0 z0 H] := S_cone n; rewrite -/(S n).
have -> : norm2 (S n) = S n 0 0 ^+ 2 + (- S n 1 0) ^+ 2.
  rewrite /norm2 /dot !big_ord_recl big_ord0 addr0 sqrrN -!expr2.
  by congr (_ + S n _ _ ^+ 2); exact: val_inj.
have r0 : 0 <= rate by rewrite divr_ge0 ?ler0n.
have g0 : 0 <= rate ^+ n by rewrite exprn_ge0.
move: (S n 0 0) (- S n 1 0) y0 z0 H => y z y0 z0 H.
rewrite -mul2n mulnC exprM; set g := rate ^+ n in g0 H *.
have sq : (193%:R * g) ^+ 2 <= (100%:R * y + 93%:R * z) ^+ 2.
  by rewrite ler_expn2r // nnegrE ?addr_ge0 ?mulr_ge0 ?ler0n.
pose m : R := 100%:R ^+ 2 + 93%:R ^+ 2.
have pos : 0 < m by rewrite addr_gt0 // exprn_gt0 ?ltr0n.
rewrite -(ler_pmul2l pos).
apply: le_trans (_ : (193%:R * g) ^+ 2 <= _).
  rewrite exprMn ler_wpmul2r ?sqr_ge0 //.
  rewrite -subr_ge0 (_ : _ - m = 100%:R * 93%:R *+ 2); last by rewrite /m; ring.
  by rewrite -!natrM mulrn_wge0 ?ler0n.
apply: le_trans sq _; rewrite -subr_ge0.
have -> : m * (y ^+ 2 + z ^+ 2) - (100%:R * y + 93%:R * z) ^+ 2
    = (93%:R * y - 100%:R * z) ^+ 2 by rewrite /m; ring.
exact: sqr_ge0.
Qed.

End Growth.
