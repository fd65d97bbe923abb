(** How do segments of a sequence compose?  SEG-1: splitting anywhere and
    passing the state changes nothing, and a run of tokens is one affine map of
    the state, column by column; the maps compose, associatively. *)
From carve Require Import recurrence chunk column wy columns general.

Section Split.
Variables (R : comRingType) (K V : nat) (ro : readout) (scale : R).

(** SEG-1, splitting, token by token. *)
Theorem split_recurrent (x : nat -> token R K V) S0 m n :
  let first := recurrent ro scale x S0 m in
  let second := recurrent ro scale (from m x) first.2 n in
  recurrent ro scale x S0 (m + n) = (first.1 ++ second.1, second.2).
Proof.
rewrite /= /recurrent /= mkseq_cat /state walk_from; congr (_ ++ _, _).
by apply: eq_mkseq => t; rewrite /output seen_from /state walk_from.
Qed.

Theorem split_mask_recurrent (x : nat -> masked R K V) S0 m n :
  let first := mask_recurrent ro scale x S0 m in
  let second := mask_recurrent ro scale (from m x) first.2 n in
  mask_recurrent ro scale x S0 (m + n) = (first.1 ++ second.1, second.2).
Proof.
rewrite /= /mask_recurrent /= mkseq_cat /mask_state walk_from.
congr (_ ++ _, _); apply: eq_mkseq => t.
by rewrite /mask_output seen_from /mask_state walk_from.
Qed.

(** SEG-1, splitting, in chunks that need not fit the split. *)
Theorem split_chunked l1 l2 (x : nat -> token R K V) S0 : key_axis_erase x ->
  let first := chunked ro scale l1 x S0 in
  let second := chunked ro scale l2 (from (sumn l1) x) first.2 in
  forall l, sumn l = (sumn l1 + sumn l2)%N ->
  chunked ro scale l x S0 = (first.1 ++ second.1, second.2).
Proof.
move=> key_axis first second l E; rewrite chunked_any_lengths // E.
rewrite split_recurrent /second /first !chunked_any_lengths //.
exact: key_axis_from.
Qed.

Theorem split_columnwise l1 l2 (x : nat -> masked R K V) S0 :
  let first := columnwise ro scale l1 x S0 in
  let second := columnwise ro scale l2 (from (sumn l1) x) first.2 in
  forall l, sumn l = (sumn l1 + sumn l2)%N ->
  columnwise ro scale l x S0 = (first.1 ++ second.1, second.2).
Proof.
move=> first second l E; rewrite columnwise_is_recurrent E.
by rewrite split_mask_recurrent /second /first !columnwise_is_recurrent.
Qed.

End Split.

Section Maps.
Variables (R : comRingType) (K V : nat).

(** S -> (A j S_j + B_j for every column j): a matrix for each column. *)
Record segment := Segment { A : 'I_V -> 'M[R]_K; B : 'M[R]_(K, V) }.
Definition apply f (S : 'M[R]_(K, V)) : 'M[R]_(K, V) :=
  \matrix_(i, j) (A f j *m col j S + col j (B f)) i 0.
Definition compose g f :=
  Segment (fun j => A g j *m A f j) (apply g (B f)).
Definition no_tokens := Segment (fun=> 1%:M) 0.

Definition same f g := (forall j, A f j = A g j) /\ B f = B g.

Lemma col_apply f S j : col j (apply f S) = A f j *m col j S + col j (B f).
Proof. by apply/colP=> i; rewrite !mxE. Qed.

Lemma eq_columns (S S' : 'M[R]_(K, V)) :
  (forall j, col j S = col j S') -> S = S'.
Proof. by move=> H; apply/matrixP=> i j; have /colP/(_ i) := H j; rewrite !mxE. Qed.

(** SEG-1: composition is what it says, associative, with a unit. *)
Theorem apply_compose g f S : apply (compose g f) S = apply g (apply f S).
Proof.
apply: eq_columns => j; rewrite !col_apply.
by rewrite mulmxDr mulmxA addrA.
Qed.

Theorem composeA h g f : same (compose h (compose g f)) (compose (compose h g) f).
Proof. by split=> [j|] /=; rewrite ?mulmxA // apply_compose. Qed.

Theorem no_tokens_apply S : apply no_tokens S = S.
Proof. by apply: eq_columns => j; rewrite col_apply mul1mx linear0 addr0. Qed.

Theorem compose_no_tokens f : same (compose f no_tokens) f
                            /\ same (compose no_tokens f) f.
Proof.
split; split=> [j|] /=; rewrite ?mulmx1 ?mul1mx ?no_tokens_apply //.
by apply: eq_columns => j; rewrite col_apply linear0 mulmx0 add0r.
Qed.

(** The map of a run of tokens, each token's given. *)
Fixpoint segment_of X (one : X -> segment) (x : nat -> X) T :=
  if T is t.+1 then compose (one (x t)) (segment_of one x t) else no_tokens.

Theorem segment_of_walk X (one : X -> segment) f (x : nat -> X) S0 T :
  (forall y S, apply (one y) S = f y S) ->
  apply (segment_of one x T) S0 = walk f x S0 T.
Proof.
move=> H; elim: T => [|T IH] /=; first exact: no_tokens_apply.
by rewrite apply_compose IH H.
Qed.

(** SEG-1: the map of a sequence is that of its parts, composed. *)
Theorem segment_of_cat X (one : X -> segment) (x : nat -> X) m n :
  same (segment_of one x (m + n))
       (compose (segment_of one (from m x) n) (segment_of one x m)).
Proof.
elim: n => [|n [IHA IHB]]; first by rewrite addn0; case: (compose_no_tokens
  (segment_of one x m)) => _ [HA HB]; split=> *; rewrite ?HA ?HB.
by rewrite addnS; split=> [j|] /=; rewrite ?IHA ?IHB ?mulmxA ?apply_compose.
Qed.

(** One token: gates on either axis, a full mask, the general step. *)
Definition token_map (x : token R K V) := Segment
  (fun j => d x j 0 *: ((1%:M - k x *m (e x j 0 *: address x)^T) *m diag (a x)))
  (k x *m (w x .* v x)^T).
Definition mask_map (x : masked R K V) := Segment
  (fun j => d x j 0 *: ((1%:M - k x *m (col j (E x) .* k x)^T) *m diag (a x)))
  (k x *m (w x .* v x)^T).
Definition general_map order (x : general R K V) := Segment
  (fun j => let decay := gd x j 0 *: diag (ga x) in
            decay - gy x *m (ge x j 0 *: gr x)^T
                      *m (if order is after then decay else 1%:M))
  (gk x *m (gw x .* gv x)^T).

Lemma outer_mulE n (y r : 'cV[R]_K) (M : 'M[R]_(K, n)) i j :
  (y *m r^T *m M) i j = y i 0 * \sum_l r l 0 * M l j.
Proof.
rewrite -mulmxA mxE big_ord1 mxE; congr (_ * _); apply: eq_bigr => l _.
by rewrite mxE.
Qed.

Let swap_decay (r a d s : R) : r * (a * d * s) = d * (r * (a * s)).
Proof. by ring. Qed.
Let fold_step (d a s k sum wv : R) :
  d * (a * s - k * sum) + k * wv = a * d * s + k * (wv - d * sum).
Proof. by ring. Qed.
Let swap_gates (b k e : R) : b * e * k = e * (b * k).
Proof. by ring. Qed.
Let fold_general (d a s y e c k wv : R) :
  d * (a * s) - y * (e * c) + k * wv = a * d * s + k * wv - y * (e * c).
Proof. by ring. Qed.

Lemma mask_mapP x S : apply (mask_map x) S = mask_step x S.
Proof.
apply/matrixP=> i j; rewrite mxE addE /= -scalemxAl -mulmxA mulmxBl mul1mx.
rewrite scaleE subE outer_mulE /mask_step addE outerE mask_updateE.
rewrite [col _ _ _ _]mxE outerE elementwiseE decayedE diag_mulE.
rewrite [col j S i 0]mxE; set sum := \sum_l _.
have -> : \sum_l (col j (E x) .* k x) l 0 * decayed x S l j = d x j 0 * sum.
  rewrite mulr_sumr; apply: eq_bigr => l _; rewrite diag_mulE decayedE.
  by rewrite [col j S l 0]mxE; exact: swap_decay.
exact: fold_step.
Qed.

Lemma token_mapP x S : apply (token_map x) S = step x S.
Proof.
rewrite -rank_one_mask -mask_mapP; apply: eq_columns => j.
rewrite !col_apply [A _ _]/= [A (mask_map _) _]/= [B _]/= [B (mask_map _)]/=.
have -> : e x j 0 *: address x = col j (b x *m (e x)^T) .* k x.
  apply/colP=> i; rewrite scaleE !elementwiseE [col _ _ _ _]mxE outerE.
  by rewrite swap_gates.
by [].
Qed.

Lemma general_mapP order x S :
  apply (general_map order x) S = general_step order x S.
Proof.
apply/matrixP=> i j; rewrite mxE addE /= mulmxBl subE -mulmxA outer_mulE.
rewrite /general_step subE addE !outerE !elementwiseE general_decayedE tr_mulE.
rewrite [col _ _ _ _]mxE outerE elementwiseE -scalemxAl scaleE diag_mulE [col j S i 0]mxE.
set look := \sum_l _; set sum := \sum_l _.
have -> : look = ge x j 0 * sum.
  rewrite mulr_sumr; apply: eq_bigr => l _; rewrite scaleE -mulrA.
  congr (_ * (_ * _)); rewrite /looked_up; case: order {look sum} => /=.
    rewrite -scalemxAl scaleE diag_mulE mxE general_decayedE.
    by rewrite mulrA [_ * ga x l 0]mulrC.
  by rewrite mul1mx mxE.
exact: fold_general.
Qed.

(** SEG-1: the state after T tokens is the run's map of the start state. *)
Theorem state_as_map (x : nat -> token R K V) S0 T :
  apply (segment_of token_map x T) S0 = state x S0 T.
Proof. by apply: segment_of_walk; exact: token_mapP. Qed.

Theorem mask_state_as_map (x : nat -> masked R K V) S0 T :
  apply (segment_of mask_map x T) S0 = mask_state x S0 T.
Proof. by apply: segment_of_walk; exact: mask_mapP. Qed.

Theorem general_state_as_map order (x : nat -> general R K V) S0 T :
  apply (segment_of (general_map order) x T) S0 = general_state order x S0 T.
Proof. by apply: segment_of_walk; exact: general_mapP. Qed.

(** Key-axis erase: one matrix for all columns, times a column's value decay. *)
Fixpoint transition (x : nat -> token R K V) T : 'M[R]_K :=
  if T is t.+1
  then (1%:M - k (x t) *m (address (x t))^T) *m diag (a (x t))
         *m transition x t
  else 1%:M.

Theorem one_transition (x : nat -> token R K V) T j : key_axis_erase x ->
  A (segment_of token_map x T) j
  = ratio (fun t => d (x t)) 0 T j 0 *: transition x T.
Proof.
move=> key_axis; elim: T => [|T IH] /=; first by rewrite ratio_same scale1r.
rewrite IH key_axis mxE scale1r -scalemxAl -scalemxAr scalerA.
by rewrite -(ratio_recr (fun t => d (x t))).
Qed.

End Maps.
