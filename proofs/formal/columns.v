(** What remains of the chunked form when the erase gate varies along the value
    axis?  One system a column, which still gives the recurrence (WY-2).  And a
    full mask b e^T is the two gates together (WY-6, second half); the decay of
    the value axis and the write gate leave the one inverse alone (WY-5). *)
From carve Require Import recurrence chunk column wy.

Section Columns.
Variables (R : comRingType) (K V C : nat).
Variables (x : nat -> masked R K V) (S0 : 'M[R]_(K, V)).
Local Notation a_ := (fun t => a (x t)).
Local Notation d_ := (fun t => d (x t)).
Local Notation k_ := (fun t => k (x t)).
Local Notation S t := (mask_state x S0 t).
Local Notation u t := (mask_update (x t) (S t)).

(** The erase address that column j sees, its system and its solution. *)
Definition column_address j t := col j (E (x t)) .* k (x t).
Definition column_L j := scores C (column_address j) k_ a_ id succn.
Definition column_T j : 'M[R]_C :=
  unit_inverse (\matrix_(t, s) (column_L j t s * ratio d_ s.+1 t.+1 j 0)).
Definition column_rhs : 'M[R]_(C, V) := \matrix_(t < C, j < V)
  (w (x t) j 0 * v (x t) j 0 - ratio d_ 0 t.+1 j 0 *
   \sum_i column_address j t i 0 * ratio a_ 0 t.+1 i 0 * S0 i j).
Definition column_U : 'M[R]_(C, V) :=
  \matrix_(t < C, j < V) (column_T j *m col j column_rhs) t 0.

Lemma mask_updateE (y : masked R K V) M j :
  (mask_update y M) j 0 = w y j 0 * v y j 0
    - \sum_i (col j (E y) .* k y) i 0 * decayed y M i j.
Proof.
rewrite /mask_update subE elementwiseE tr_mulE; congr (_ - _).
apply: eq_bigr => i _; rewrite [X in X = _]mulrC.
by rewrite !elementwiseE [col _ _ _ _]mxE mulrAC.
Qed.

Lemma mask_update_is_U (t : 'I_C) j : u t j 0 = column_U t j.
Proof.
rewrite [RHS]mxE.
pose uj : 'cV[R]_C := \col_s u s j 0.
have -> : u t j 0 = uj t 0 by rewrite [RHS]mxE.
congr (fun_of_matrix _ _ _); apply: unit_solve => [s l sl|].
  by rewrite mxE (scores_lower _ _ _ _ sl) mul0r.
apply/colP=> s; rewrite delta_mulr [uj s 0]mxE [RHS]mxE [RHS]mxE mask_updateE.
rewrite (read_unrolled _ (ltnW (ltn_ord s))
  (decayed_unrolled (erefl _) (fun t => erefl _) s ^~ j)).
rewrite opprD -!addrA [X in _ + (_ + X)](_ : _ = 0) ?addr0 //.
rewrite addrC -sumrB big1 // => l _; rewrite [X in X * _]mxE scoresE [uj l 0]mxE.
by case: ifP => _; rewrite ?mul0r ?subrr.
Qed.

End Columns.

Definition columnwise (R : comRingType) K V ro (scale : R) :=
  chunked_by ro scale (@bare R K V) (@column_U R K V).
Definition mask_recurrent (R : comRingType) K V ro (scale : R)
    (x : nat -> masked R K V) S0 T :=
  (mkseq (mask_output ro scale x S0) T, mask_state x S0 T).

(** WY-2: column by column, any full mask, chunks of any lengths. *)
Theorem columnwise_is_recurrent (R : comRingType) K V ro (scale : R) lengths
    (x : nat -> masked R K V) S0 :
  columnwise ro scale lengths x S0 =
  mask_recurrent ro scale x S0 (sumn lengths).
Proof.
apply: (@chunked_by_correct _ _ _ _ _ _ _ _ _ _ (fun=> True)) => //.
by move=> C x' S' t j _; rewrite -mask_update_is_U.
Qed.

(** WY-6, second half: a mask of rank one is a gate on either axis. *)
Definition both_gates (R : comRingType) K V (x : token R K V) : masked R K V :=
  Masked x (b x *m (e x)^T).

Theorem rank_one_mask (R : comRingType) K V (x : token R K V) S :
  mask_step (both_gates x) S = step x S.
Proof.
congr (_ + _ *m _^T); apply/colP=> j; rewrite mask_updateE updateE.
congr (_ - _); rewrite mulr_sumr; apply: eq_bigr => i _.
rewrite /address !elementwiseE [col _ _ _ _]mxE outerE [RHS]mulrA.
by congr (_ * _); rewrite [RHS]mulrCA mulrA.
Qed.

Lemma rank_one_mask_state (R : comRingType) K V (x : nat -> token R K V) S0 t :
  mask_state (fun t => both_gates (x t)) S0 t = state x S0 t.
Proof.
elim: t => // t IH; rewrite /mask_state /state /= -/(state x S0 t) -IH.
exact: rank_one_mask.
Qed.

(** WY-2 for gates on either axis: the column of a value gate e has the system
    I + diag(e_.j) L. *)
Theorem columnwise_value_gate (R : comRingType) K V ro (scale : R) lengths
    (x : nat -> token R K V) S0 :
  columnwise ro scale lengths (fun t => both_gates (x t)) S0 =
  recurrent ro scale x S0 (sumn lengths).
Proof.
rewrite columnwise_is_recurrent /mask_recurrent rank_one_mask_state.
congr (_, _); apply: eq_mkseq => t.
by rewrite /mask_output rank_one_mask_state.
Qed.

Lemma column_L_value_gate (R : comRingType) K V C (x : nat -> token R K V) j
    (t s : 'I_C) :
  column_L C (fun t => both_gates (x t)) j t s = e (x t) j 0 * L C x t s.
Proof.
rewrite !scoresE; case: ifP => _; last by rewrite mulr0.
rewrite mulr_sumr; apply: eq_bigr => i _.
by rewrite !elementwiseE [col _ _ _ _]mxE outerE -!mulrA mulrCA.
Qed.

(** WY-5: under a decay of the value axis every column has a system of its own,
    and the inverse of each is the shared T, decayed.  The write gate is on the
    right-hand side only: T does not mention it. *)
Theorem value_decay_keeps_T (R : comRingType) K V C (x : nat -> token R K V) j :
  let D_ratio s t := ratio (fun t => d (x t)) s.+1 t.+1 j 0 in
  unit_inverse (decay_by D_ratio (L C x)) = decay_by D_ratio (T C x).
Proof.
move=> g; apply: unit_inverse_decay => [|t|s l t slt]; first exact: L_lower.
  exact: ratio_same.
by rewrite /g ratio_cat // !ltnS.
Qed.

Theorem T_ignores_values (R : comRingType) K V C (x y : nat -> token R K V) :
  (forall t, [/\ k (x t) = k (y t), a (x t) = a (y t) & b (x t) = b (y t)]) ->
  T C x = T C y.
Proof.
move=> H; congr unit_inverse; apply/matrixP=> t s; rewrite !scoresE.
case: ifP => // _; apply: eq_bigr => i _; rewrite !ratioE !elementwiseE.
have [-> _ ->] := H t; have [-> _ _] := H s; congr (_ * _ * _).
by apply: eq_bigr => l _; have [_ -> _] := H l.
Qed.
