(** Is the chunked form of key-axis erase the recurrence?  Yes (WY-1): for all
    T, C, K, V, any start state, any decays of both axes, any write gate, both
    read-outs, over any commutative ring. *)
From carve Require Import recurrence chunk column.

(** Nothing varies along the value axis in what is erased. *)
Definition key_axis_erase (R : comRingType) K V (x : nat -> token R K V) :=
  forall t, e (x t) = ones.

Section OneChunk.
(** A chunk whose token t writes u t, by whatever rule. *)
Variables (R : comRingType) (K V : nat) (ro : readout) (scale : R).
Variables (C : nat) (x : nat -> token R K V) (S0 : 'M[R]_(K, V)).
Variables (S : nat -> 'M[R]_(K, V)) (u : nat -> 'cV[R]_V).
Hypothesis S_start : S 0 = S0.
Hypothesis S_step : forall t, S t.+1 = decayed (x t) (S t) + k (x t) *m (u t)^T.

Local Notation a_ := (fun t => a (x t)).
Local Notation d_ := (fun t => d (x t)).

Lemma split_decay i j m n :
  \prod_(m <= l < n) (a (x l) i 0 * d (x l) j 0)
  = ratio a_ m n i 0 * ratio d_ m n j 0.
Proof. by rewrite big_split !ratioE. Qed.

Lemma S_stepE t i j :
  S t.+1 i j = a (x t) i 0 * d (x t) j 0 * S t i j + k (x t) i 0 * u t j 0.
Proof. by rewrite S_step addE decayedE outerE. Qed.

Lemma state_unrolled t i j :
  S t i j = ratio a_ 0 t i 0 * ratio d_ 0 t j 0 * S0 i j
    + \sum_(s < t) ratio a_ s.+1 t i 0 * k (x s) i 0
                   * (ratio d_ s.+1 t j 0 * u s j 0).
Proof.
rewrite (@unroll _ (fun t => a (x t) i 0 * d (x t) j 0)
  (fun t => k (x t) i 0 * u t j 0) (fun t => S t i j)) => [|s].
  rewrite split_decay S_start; congr (_ + _); apply: eq_bigr => s _.
  by rewrite split_decay; ring.
exact: S_stepE.
Qed.

Lemma decayed_unrolled t i j :
  decayed (x t) (S t) i j =
    ratio a_ 0 t.+1 i 0 * ratio d_ 0 t.+1 j 0 * S0 i j
    + \sum_(s < t) ratio a_ s.+1 t.+1 i 0 * k (x s) i 0
                   * (ratio d_ s.+1 t.+1 j 0 * u s j 0).
Proof.
rewrite decayedE (@unroll_decayed _ (fun t => a (x t) i 0 * d (x t) j 0)
  (fun t => k (x t) i 0 * u t j 0) (fun t => S t i j)) => [|s].
  rewrite split_decay S_start; congr (_ + _); apply: eq_bigr => s _.
  by rewrite split_decay; ring.
exact: S_stepE.
Qed.

(** A read of the unrolled state at an address p, token t of the chunk. *)
Lemma read_unrolled (p : 'cV[R]_K) (X : 'M[R]_(K, V)) n t j : (t <= C)%N ->
  (forall i, X i j = ratio a_ 0 n i 0 * ratio d_ 0 n j 0 * S0 i j
    + \sum_(s < t) ratio a_ s.+1 n i 0 * k (x s) i 0
                   * (ratio d_ s.+1 n j 0 * u s j 0)) ->
  \sum_i p i 0 * X i j =
    ratio d_ 0 n j 0 * (\sum_i (p i 0 * ratio a_ 0 n i 0) * S0 i j)
    + \sum_(s < C) (if (s < t)%N then
        \sum_i p i 0 * ratio a_ s.+1 n i 0 * k (x s) i 0 else 0)
        * ratio d_ s.+1 n j 0 * u s j 0.
Proof.
move=> tC H; under eq_bigr do rewrite H mulrDr mulr_sumr.
rewrite big_split mulr_sumr; congr (_ + _).
  by apply: eq_bigr => i _; ring.
rewrite exchange_big /= (sum_before (fun s => \sum_i p i 0 *
  (ratio a_ s.+1 n i 0 * k (x s) i 0 * (ratio d_ s.+1 n j 0 * u s j 0))) tC).
apply: eq_bigr => s _; case: ifP => _; last by rewrite !mul0r.
by rewrite -[RHS]mulrA mulr_suml; apply: eq_bigr => i _; rewrite !mulrA.
Qed.

Variable U : 'M[R]_(C, V).
Hypothesis U_is_u : forall (t : 'I_C) j, U t j = u t j 0.

Lemma outputs_chunk (t : 'I_C) :
  (row t (outputs ro scale x S0 U))^T = read scale (x t) (S (seen ro t)).
Proof.
apply/colP=> j; rewrite readE 2![LHS]mxE [LHS]mxE; congr (_ * _).
have seenC : (seen ro t <= C)%N by case: ro => /=; rewrite ?ltn_ord // ltnW.
rewrite (read_unrolled _ seenC (state_unrolled _ ^~ j)).
rewrite /D_read addE elementwiseE stackE weightedE mulE.
congr (_ * _ + _); apply: eq_bigr => s _.
  by rewrite stackE elementwiseE.
by rewrite scoresE U_is_u.
Qed.

Lemma end_state_chunk : end_state x S0 U = S C.
Proof.
apply/matrixP=> i j; rewrite addE mul_diagE diag_mulE state_unrolled mulE.
congr (_ + _); first by ring.
apply: eq_bigr => s _; rewrite mxE elementwiseE !stackE elementwiseE.
by rewrite U_is_u.
Qed.

End OneChunk.

Section AnyRule.
(** Chunks of a rule that writes u, solved by any means that finds u. *)
Variables (R : comRingType) (K V : nat) (ro : readout) (scale : R).
Variables (X : Type) (bare : X -> token R K V).
Variables (f : X -> 'M[R]_(K, V) -> 'M[R]_(K, V)).
Variables (u : X -> 'M[R]_(K, V) -> 'cV[R]_V).
Variables (solve : forall C, (nat -> X) -> 'M[R]_(K, V) -> 'M[R]_(C, V)).
Variables (fits : (nat -> X) -> Prop).
Hypothesis f_writes_u : forall x S,
  f x S = decayed (bare x) S + k (bare x) *m (u x S)^T.
Hypothesis fits_from : forall m x, fits x -> fits (from m x).
Hypothesis solved : forall C x S0 (t : 'I_C) j, fits x ->
  solve C x S0 t j = u (x t) (walk f x S0 t) j 0.

Let out x S0 t := read scale (bare (x t)) (walk f x S0 (seen ro t)).

Lemma seen_from m n : seen ro (m + n) = (m + seen ro n)%N.
Proof. by case: ro => //=; rewrite addnS. Qed.

Lemma out_from x S0 m n : out x S0 (m + n) = out (from m x) (walk f x S0 m) n.
Proof. by rewrite /out seen_from walk_from. Qed.

Lemma mkseq_cat (Y : Type) (g : nat -> Y) m n :
  mkseq g (m + n) = mkseq g m ++ mkseq (fun t => g (m + t)%N) n.
Proof.
rewrite /mkseq iotaD map_cat add0n; congr (_ ++ _).
by rewrite -[in LHS](addn0 m) iotaDl -map_comp.
Qed.

Theorem chunked_by_correct lengths x S0 : fits x ->
  chunked_by ro scale bare solve lengths x S0 =
  (mkseq (out x S0) (sumn lengths), walk f x S0 (sumn lengths)).
Proof.
elim: lengths x S0 => //= C rest IH x S0 fx.
have U_is_u (t : 'I_C) j := solved S0 t j fx.
have step t : walk f x S0 t.+1 =
    decayed ((bare \o x) t) (walk f x S0 t)
    + k ((bare \o x) t) *m (u (x t) (walk f x S0 t))^T by exact: f_writes_u.
rewrite (end_state_chunk (erefl _) step U_is_u) IH; last exact: fits_from.
rewrite mkseq_cat walk_from; congr (_ ++ _, _); last first.
  by apply: eq_mkseq => t; rewrite out_from.
rewrite /rows_of /mkseq -val_enum_ord -[in RHS]map_comp.
by apply: eq_map => t /=; rewrite (outputs_chunk _ _ (erefl _) step U_is_u).
Qed.

End AnyRule.

Section KeyAxis.
Variables (R : comRingType) (K V C : nat).
Variables (x : nat -> token R K V) (S0 : 'M[R]_(K, V)).
Hypothesis key_axis : key_axis_erase x.
Local Notation a_ := (fun t => a (x t)).
Local Notation d_ := (fun t => d (x t)).
Local Notation S t := (state x S0 t).
Local Notation u t := (update (x t) (S t)).

Lemma L_lower : strictly_lower (L C x).
Proof. exact: scores_lower. Qed.

(** (I + L decayed along column j) u = w v - decayed read of the start state *)
Lemma update_is_U (t : 'I_C) j : u t j 0 = U C x S0 t j.
Proof.
pose g m n := ratio d_ m.+1 n.+1 j 0.
pose uj : 'cV[R]_C := \col_s u s j 0.
pose rhs : 'cV[R]_C := \col_s (WV C x s j - D_update C x s j
                               * (R_hat C x *m S0) s j).
have system : (1%:M + decay_by g (L C x)) *m uj = rhs.
  apply/colP=> s; rewrite delta_mulr [uj s 0]mxE [RHS]mxE updateE key_axis.
  rewrite [ones _ _]mxE mul1r /WV /D_update /R_hat !stackE elementwiseE.
  rewrite (read_unrolled _ (ltnW (ltn_ord s)) (decayed_unrolled (erefl _) (fun t => erefl _) s ^~ j)).
  rewrite opprD -!addrA [X in _ + (_ + X)](_ : _ = 0) ?addr0.
    congr (_ - _ * _); rewrite mulE.
    by apply: eq_bigr => i _; rewrite stackE [in RHS]elementwiseE.
  rewrite addrC -sumrB big1 // => l _; rewrite decay_byE scoresE mxE.
  by case: ifP => _; rewrite ?mul0r ?subrr.
have gM s l m : (s <= l <= m)%N -> g s l * g l m = g s m.
  by move=> slm; rewrite /g ratio_cat // !ltnS.
have := unit_solve (decay_by_lower g L_lower) system.
rewrite unit_inverse_decay //; [|exact: L_lower|by move=> s; exact: ratio_same].
move=> /colP/(_ t); rewrite [uj t 0]mxE => ->.
rewrite mulE /U subE weightedE elementwiseE -mulmxA (mulE (T C x)).
rewrite mulr_sumr -sumrB; apply: eq_bigr => s _; rewrite decay_byE.
rewrite [rhs s 0]mxE mulrBr; congr (_ - _); rewrite /D_update !stackE.
have [ts|st] := ltnP t s.
  by rewrite /T unit_inverse_upper ?(mul0r, mulr0) //; exact: L_lower.
rewrite -(@ratio_cat _ _ _ 0 s.+1 t.+1) ?ltnS //.
by rewrite [in RHS](mulrC (ratio _ 0 _ _ _)) [RHS]mulrACA [X in X * _ = _]mulrC.
Qed.

End KeyAxis.

Lemma key_axis_from (R : comRingType) K V m (x : nat -> token R K V) :
  key_axis_erase x -> key_axis_erase (from m x).
Proof. by move=> H t; apply: H. Qed.

Lemma chunk_lengths_sum C T : sumn (chunk_lengths C T) = T.
Proof.
rewrite /chunk_lengths -cats1 sumn_cat sumn_nseq /= addn0 mulnC.
by rewrite -divn_eq.
Qed.

Section WY1.
Variables (R : comRingType) (K V : nat) (ro : readout) (scale : R).

(** WY-1, for chunks of any lengths, mixed at will. *)
Theorem chunked_any_lengths (lengths : seq nat) x (S0 : 'M[R]_(K, V)) :
  key_axis_erase x ->
  chunked ro scale lengths x S0 = recurrent ro scale x S0 (sumn lengths).
Proof.
apply: chunked_by_correct => // [m x'|C x' S' t j]; first exact: key_axis_from.
by move=> key_axis; rewrite -update_is_U.
Qed.

(** WY-1: chunks of C tokens, the last one ragged. *)
Theorem chunked_is_recurrent C T x (S0 : 'M[R]_(K, V)) :
  key_axis_erase x ->
  chunked ro scale (chunk_lengths C T) x S0 = recurrent ro scale x S0 T.
Proof.
by move=> key_axis; rewrite chunked_any_lengths // chunk_lengths_sum.
Qed.

End WY1.

Section WithoutValueDecay.
Variables (R : comRingType) (K V C : nat) (ro : readout) (scale : R).
Variables (x : nat -> token R K V) (S0 : 'M[R]_(K, V)).
Hypothesis no_d : forall t, d (x t) = ones.

Lemma weighted_ones upto (A : 'M[R]_C) (B : 'M[R]_(C, V)) :
  weighted (fun t => d (x t)) upto A B = A *m B.
Proof.
apply/matrixP=> t j; rewrite weightedE mulE; apply: eq_bigr => s _.
by rewrite ratio_ones // mulr1.
Qed.

Lemma stack_ones s t (B : 'M[R]_(C, V)) :
  stack C (fun l => ratio (fun t => d (x t)) (s l) (t l)) .* B = B.
Proof.
by apply/matrixP=> l j; rewrite elementwiseE stackE ratio_ones // mul1r.
Qed.

(** WY-1 without value decay: T meets w v and the decayed addresses, and all
    the rest is products of matrices. *)
Theorem U_as_product :
  U C x S0 = T C x *m WV C x - (T C x *m R_hat C x) *m S0.
Proof. by rewrite /U weighted_ones /D_update stack_ones. Qed.

Theorem outputs_as_product (Y : 'M[R]_(C, V)) :
  outputs ro scale x S0 Y = scale *: (Q_hat ro C x *m S0 + P ro C x *m Y).
Proof. by rewrite /outputs weighted_ones /D_read stack_ones. Qed.

Theorem end_state_as_product (Y : 'M[R]_(C, V)) :
  end_state x S0 Y
  = diag (ratio (fun t => a (x t)) 0 C) *m S0 + (K_tail C x)^T *m Y.
Proof.
rewrite /end_state /D_tail stack_ones (_ : ratio (fun t => d (x t)) 0 C = ones) ?diag_ones.
  by rewrite mulmx1.
by apply/colP=> j; rewrite ratio_ones // mxE.
Qed.

End WithoutValueDecay.

Section Divided.
(** Where the value decays have inverses, U divided by them: (I + L) U = (w v) /
    D - R^ S, and outputs and end state multiply by the decay once. *)
Variables (R : comUnitRingType) (K V C : nat) (ro : readout) (scale : R).
Variables (x : nat -> token R K V) (S0 : 'M[R]_(K, V)).
Hypothesis d_unit : forall t j, d (x t) j 0 \is a GRing.unit.
Local Notation d_ := (fun t => d (x t)).
Local Notation D t j := (ratio d_ 0 t j 0).

Definition over_D (A : 'M[R]_(C, V)) : 'M[R]_(C, V) :=
  \matrix_(t < C, j < V) (A t j / D t.+1 j).

Lemma D_unit t j : D t j \is a GRing.unit.
Proof.
rewrite ratioE; elim/big_ind: _ => [|y z yu zu|l _].
- exact: unitr1.
- by rewrite unitrM yu zu.
- exact: d_unit.
Qed.

Lemma ratio_quotient s t j : (s <= t)%N -> ratio d_ s t j 0 = D t j / D s j.
Proof.
move=> st; rewrite -(@ratio_cat _ _ d_ 0 s t) //.
by rewrite [D s j * _]mulrC mulrK // D_unit.
Qed.

Lemma over_DE A t j : over_D A t j = A t j / D t.+1 j.
Proof. by rewrite mxE. Qed.

Let carry_read (p n s y : R) : p * (n * s) * y = n * (p * (y * s)).
Proof. by ring. Qed.
Let carry_end (p n s y : R) : p * (n * s * y) = p * (y * s) * n.
Proof. by ring. Qed.

Theorem U_divided :
  over_D (U C x S0) = T C x *m over_D (WV C x) - (T C x *m R_hat C x) *m S0.
Proof.
apply/matrixP=> t j; rewrite over_DE /U !subE weightedE elementwiseE stackE.
rewrite mulrBl [D _ _ * _]mulrC mulrK ?D_unit //; congr (_ - _).
rewrite mulE mulr_suml; apply: eq_bigr => s _; rewrite over_DE.
have [ts|st] := ltnP t s.
  by rewrite /T (unit_inverse_upper (@L_lower _ _ _ _ _)) ?mul0r.
rewrite ratio_quotient ?ltnS // -!mulrA; congr (_ * _).
by rewrite mulrC -!mulrA mulVr ?D_unit // mulr1 mulrC.
Qed.

Theorem outputs_divided (Y : 'M[R]_(C, V)) :
  outputs ro scale x S0 Y =
  scale *: (D_read ro C x .* (Q_hat ro C x *m S0 + P ro C x *m over_D Y)).
Proof.
congr (_ *: _); apply/matrixP=> t j; rewrite elementwiseE !addE mulrDr.
rewrite elementwiseE; congr (_ + _); rewrite weightedE mulE stackE mulr_sumr.
apply: eq_bigr => s _; rewrite over_DE /P scoresE.
case: ifP => st; last by rewrite !(mul0r, mulr0).
by rewrite ratio_quotient //; exact: carry_read.
Qed.

Theorem end_state_divided (Y : 'M[R]_(C, V)) :
  end_state x S0 Y =
  (diag (ratio (fun t => a (x t)) 0 C) *m S0 + (K_tail C x)^T *m over_D Y)
    *m diag (ratio d_ 0 C).
Proof.
rewrite mulmxDl; congr (_ + _); apply/matrixP=> i j; rewrite mul_diagE !mulE.
rewrite mulr_suml; apply: eq_bigr => s _; rewrite over_DE elementwiseE stackE.
by rewrite ratio_quotient //; exact: carry_end.
Qed.

End Divided.
