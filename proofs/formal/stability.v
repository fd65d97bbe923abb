(** Does the state stay bounded when nothing is written?  Over the reals, or
    any ordered domain: the step of key-axis erase stretches by at most
    2/sqrt(3), and can (STAB-1); products of such steps can grow for ever
    (STAB-2); with gates constant in time, with enough decay, with erase on the
    value axis or by one number, nothing grows (STAB-3 to STAB-6). *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From carve Require Import recurrence chunk column wy columns segment.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import GRing.Theory Order.TTheory Num.Theory.
Local Open Scope ring_scope.

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
by rewrite -expr2 -mulr_natl ler_wpmul2r ?sqr_ge0.
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
