(** Does the chunked form reach the general step?  Yes (WY-10): with an erase
    address and an erase direction of their own the update has rank two, and
    one unit triangular system a chunk gives what is erased.

    A value decay goes through when the erase reads after the decay.  When it
    reads before, the systems of two value columns differ by more than a change
    of variables, and the theorem asks for a decay of the key axis only. *)
From carve Require Import recurrence chunk column.

Section GeneralChunk.
Variables (R : comRingType) (K V : nat) (order ro : readout) (scale : R).
Variables (C : nat) (x : nat -> general R K V) (S0 : 'M[R]_(K, V)).
Local Notation a_ := (fun t => ga (x t)).
Local Notation d_ := (fun t => gd (x t)).
Local Notation q_ := (fun t => gq (x t)).
Local Notation k_ := (fun t => gk (x t)).
Local Notation r_ := (fun t => gr (x t)).
Local Notation y_ := (fun t => gy (x t)).
Local Notation G t := (ratio a_ 0 t).
Local Notation D t := (ratio d_ 0 t).

(** What token t looks up of what s erased, and of what s wrote. *)
Definition gL := scores C r_ y_ a_ id (seen order).
Definition gM := scores C r_ k_ a_ id (seen order).
Definition gT := unit_inverse gL.
Definition gP_k := scores C q_ k_ a_ (seen ro) (seen ro).
Definition gP_y := scores C q_ y_ a_ (seen ro) (seen ro).

Definition gR_hat := stack C (fun t => r_ t .* G (seen order t)).
Definition gQ_hat := stack C (fun t => q_ t .* G (seen ro t)).
Definition gK_tail := stack C (fun s => ratio a_ s.+1 C .* k_ s).
Definition gY_tail := stack C (fun s => ratio a_ s.+1 C .* y_ s).
Definition gWV := stack C (fun t => gw (x t) .* gv (x t)).
Definition gD_look := stack C (fun t => D t.+1).
Definition gD_read := stack C (fun t => D (seen ro t)).
Definition gD_tail := stack C (fun s => ratio d_ s.+1 C).

(** What every token erases, then outputs and end state. *)
Definition erased :=
  gD_look .* ((gT *m gR_hat) *m S0) + weighted d_ succn (gT *m gM) gWV.
Definition general_outputs :=
  scale *: (gD_read .* (gQ_hat *m S0) + weighted d_ (seen ro) gP_k gWV
            - weighted d_ (seen ro) gP_y erased).
Definition general_end :=
  diag (G C) *m S0 *m diag (D C) + gK_tail^T *m (gD_tail .* gWV)
  - gY_tail^T *m (gD_tail .* erased).

Hypothesis key_axis : forall t, ge (x t) = ones.
Hypothesis before_needs : order = before -> forall t, gd (x t) = ones.

Local Notation S t := (general_state order x S0 t).
Local Notation c t := ((looked_up order (x t) (S t))^T *m gr (x t)).
Local Notation wv t j := (gw (x t) j 0 * gv (x t) j 0).
Local Notation taken s i j :=
  (gk (x s) i 0 * wv s j - gy (x s) i 0 * c s j 0).

Lemma general_stepE t i j :
  S t.+1 i j = ga (x t) i 0 * gd (x t) j 0 * S t i j + taken t i j.
Proof.
rewrite /= /general_step subE addE general_decayedE !outerE !elementwiseE.
by rewrite key_axis [ones _ _]mxE mul1r addrA.
Qed.

Lemma split_general_decay i j m n :
  \prod_(m <= l < n) (ga (x l) i 0 * gd (x l) j 0)
  = ratio a_ m n i 0 * ratio d_ m n j 0.
Proof. by rewrite big_split !ratioE. Qed.

Lemma general_unrolled t i j :
  S t i j = ratio a_ 0 t i 0 * ratio d_ 0 t j 0 * S0 i j
    + \sum_(s < t) ratio a_ s.+1 t i 0 * ratio d_ s.+1 t j 0 * taken s i j.
Proof.
rewrite (@unroll _ (fun t => ga (x t) i 0 * gd (x t) j 0)
  (fun t => taken t i j) (fun t => S t i j)) => [|s].
  rewrite split_general_decay; congr (_ + _); apply: eq_bigr => s _.
  by rewrite split_general_decay.
exact: general_stepE.
Qed.

Lemma looked_up_unrolled t i j :
  looked_up order (x t) (S t) i j =
    ratio a_ 0 (seen order t) i 0 * ratio d_ 0 t.+1 j 0 * S0 i j
    + \sum_(s < t) ratio a_ s.+1 (seen order t) i 0 * ratio d_ s.+1 t.+1 j 0
                   * taken s i j.
Proof.
have [E|E] : order = after \/ order = before by case: (order); auto.
  have ->: looked_up order (x t) (S t) = general_decayed (x t) (S t).
    by rewrite /looked_up E.
  have ->: seen order t = t.+1 by rewrite E.
  rewrite general_decayedE
    (@unroll_decayed _ (fun t => ga (x t) i 0 * gd (x t) j 0)
      (fun t => taken t i j) (fun t => S t i j)) => [|s].
    rewrite split_general_decay; congr (_ + _); apply: eq_bigr => s _.
    by rewrite split_general_decay.
  exact: general_stepE.
have ->: looked_up order (x t) (S t) = S t by rewrite /looked_up E.
have ->: seen order t = t by rewrite E.
have one := before_needs E; rewrite general_unrolled.
congr (_ * _ * _ + _); first by rewrite !ratio_ones.
by apply: eq_bigr => s _; rewrite !(@ratio_ones _ _ d_).
Qed.

Lemma general_read (p : 'cV[R]_K) (X : 'M[R]_(K, V)) n m t j : (t <= C)%N ->
  (forall i, X i j = ratio a_ 0 n i 0 * ratio d_ 0 m j 0 * S0 i j
    + \sum_(s < t) ratio a_ s.+1 n i 0 * ratio d_ s.+1 m j 0 * taken s i j) ->
  \sum_i p i 0 * X i j =
    ratio d_ 0 m j 0 * (\sum_i (p i 0 * ratio a_ 0 n i 0) * S0 i j)
    + (\sum_(s < C) (if (s < t)%N then
        \sum_i p i 0 * ratio a_ s.+1 n i 0 * gk (x s) i 0 else 0)
        * ratio d_ s.+1 m j 0 * wv s j
      - \sum_(s < C) (if (s < t)%N then
        \sum_i p i 0 * ratio a_ s.+1 n i 0 * gy (x s) i 0 else 0)
        * ratio d_ s.+1 m j 0 * c s j 0).
Proof.
move=> tC H; under eq_bigr do rewrite H mulrDr mulr_sumr.
rewrite big_split mulr_sumr; congr (_ + _).
  by apply: eq_bigr => i _; ring.
rewrite exchange_big /= (sum_before (fun s => \sum_i p i 0 *
  (ratio a_ s.+1 n i 0 * ratio d_ s.+1 m j 0 * taken s i j)) tC) -sumrB.
apply: eq_bigr => s _; case: ifP => _; last by rewrite !mul0r subr0.
rewrite -!(mulrA _ (ratio _ _ _ _ _)) !mulr_suml -sumrB.
apply: eq_bigr => i _; rewrite mulrBr mulrBr; congr (_ - _);
  by rewrite -!mulrA; congr (_ * (_ * _)); rewrite mulrCA.
Qed.

Lemma gL_lower : strictly_lower gL. Proof. exact: scores_lower. Qed.
Lemma gM_lower : strictly_lower gM. Proof. exact: scores_lower. Qed.

Lemma looked_up_is_erased (t : 'I_C) j : c t j 0 = erased t j.
Proof.
pose g m n := ratio d_ m.+1 n.+1 j 0.
pose h n := ratio d_ 0 n.+1 j 0.
pose cj : 'cV[R]_C := \col_s c s j 0.
pose rhs : 'cV[R]_C := \col_s (h s * (gR_hat *m S0) s j
                               + \sum_l decay_by g gM s l * gWV l j).
have system : (1%:M + decay_by g gL) *m cj = rhs.
  apply/colP=> s; rewrite delta_mulr [cj s 0]mxE [RHS]mxE tr_mulE.
  rewrite (general_read _ (ltnW (ltn_ord s)) (looked_up_unrolled s ^~ j)).
  rewrite -addrA; congr (_ + _).
    congr (_ * _); rewrite mulE.
    by apply: eq_bigr => i _; rewrite stackE elementwiseE.
  rewrite addrAC -addrA [X in _ + X](_ : _ = 0) ?addr0.
    apply: eq_bigr => l _; rewrite decay_byE scoresE stackE elementwiseE.
    by case: ifP.
  rewrite -sumrB big1 // => l _; rewrite decay_byE scoresE mxE.
  by case: ifP => _; rewrite ?mul0r ?subrr.
have gC s l m : (s <= l <= m)%N -> g s l * g l m = g s m.
  by move=> slm; rewrite /g ratio_cat // !ltnS.
have hC s m : (s <= m)%N -> h s * g s m = h m.
  by move=> sm; rewrite /h /g ratio_cat // ltnS.
have := unit_solve (decay_by_lower g gL_lower) system.
rewrite unit_inverse_decay //; [|exact: gL_lower|by move=> s; exact: ratio_same].
have lT := unit_inverse_lower gL_lower.
move=> /colP/(_ t); rewrite [cj t 0]mxE => ->; rewrite mulE.
under eq_bigr do rewrite [rhs _ 0]mxE mulrDr.
rewrite big_split /= (decay_by_start _ _ _ lT hC) /erased addE elementwiseE.
rewrite stackE -mulmxA weightedE; congr (_ + _).
transitivity ((decay_by g gT *m decay_by g gM *m gWV) t j).
  by rewrite -mulmxA mulE; apply: eq_bigr => s _; rewrite mulE.
rewrite decay_by_mul //; last exact/strictly_lowerW/gM_lower.
by rewrite mulE; apply: eq_bigr => s _; rewrite decay_byE.
Qed.

Lemma general_outputs_chunk (t : 'I_C) :
  (row t general_outputs)^T = general_output order ro scale x S0 t.
Proof.
apply/colP=> j; rewrite /general_output [RHS]mxE tr_mulE.
rewrite 2![LHS]mxE [LHS]mxE; congr (_ * _).
have seenC : (seen ro t <= C)%N by case: ro => /=; rewrite ?ltn_ord // ltnW.
rewrite (general_read _ seenC (general_unrolled _ ^~ j)).
rewrite subE addE elementwiseE stackE !weightedE mulE -addrA.
congr (_ * _ + (_ - _)); apply: eq_bigr => s _.
- by rewrite stackE elementwiseE.
- by rewrite scoresE stackE elementwiseE.
- by rewrite scoresE looked_up_is_erased.
Qed.

Lemma general_end_chunk : general_end = S C.
Proof.
apply/matrixP=> i j; rewrite subE addE mul_diagE diag_mulE general_unrolled.
rewrite !mulE -addrA -sumrB; congr (_ + _); first by ring.
apply: eq_bigr => s _; rewrite ![_^T _ _]mxE !elementwiseE !stackE !elementwiseE.
by rewrite looked_up_is_erased mulrBr; congr (_ - _); rewrite mulrACA.
Qed.

End GeneralChunk.

Section WY10.
Variables (R : comRingType) (K V : nat) (order ro : readout) (scale : R).

Fixpoint general_chunked (lengths : seq nat) (x : nat -> general R K V) S0 :=
  if lengths is C :: rest then
    let later := general_chunked rest (from C x) (general_end order C x S0) in
    (rows_of (general_outputs order ro scale C x S0) ++ later.1, later.2)
  else ([::], S0).

Definition general_recurrent (x : nat -> general R K V) S0 T :=
  (mkseq (general_output order ro scale x S0) T, general_state order x S0 T).

Lemma general_recurrent_cat x S0 m n :
  general_recurrent x S0 (m + n) =
  ((general_recurrent x S0 m).1
     ++ (general_recurrent (from m x) (general_state order x S0 m) n).1,
   (general_recurrent (from m x) (general_state order x S0 m) n).2).
Proof.
rewrite /general_recurrent /= /general_state walk_from; congr (_, _).
rewrite /mkseq iotaD map_cat add0n; congr (_ ++ _).
rewrite -[in LHS](addn0 m) iotaDl -map_comp; apply: eq_map => t /=.
rewrite /general_output /general_state.
have ->: seen ro (m + t) = (m + seen ro t)%N by case: ro => //=; rewrite addnS.
by rewrite walk_from.
Qed.

(** WY-10: the general step, chunks of any lengths. *)
Theorem general_chunked_is_recurrent (lengths : seq nat) x S0 :
  (forall t, ge (x t) = ones) ->
  (order = before -> forall t, gd (x t) = ones) ->
  general_chunked lengths x S0 = general_recurrent x S0 (sumn lengths).
Proof.
elim: lengths x S0 => //= C rest IH x S0 key_axis before_needs.
rewrite IH; [|by move=> t; exact: key_axis|by move=> E t; exact: before_needs].
rewrite general_recurrent_cat general_end_chunk //.
congr (_ ++ _, _).
rewrite /rows_of /general_recurrent /= /mkseq -val_enum_ord -[in RHS]map_comp.
by apply: eq_map => t /=; rewrite general_outputs_chunk.
Qed.

(** Sub-steps in chunks: a row each.  The output of a token is that of its last
    row, or of its first when it reads before. *)
Definition flat n (x : nat -> nat -> general R K V) s :=
  substep (x (s %/ n)%N) (s %% n)%N.
Definition reads n t := (if ro is after then t * n + n.-1 else t * n)%N.
Definition multi_chunked n lengths x S0 :=
  let rows := general_chunked [seq (C * n)%N | C <- lengths] (flat n x) S0 in
  ([seq nth 0 rows.1 (reads n t) | t <- iota 0 (sumn lengths)], rows.2).
Definition multi_recurrent n (x : nat -> nat -> general R K V) S0 T :=
  (mkseq (multi_output order ro scale n x S0) T, multi_state order n x S0 T).

Lemma multi_state_flat n x S0 T : (0 < n)%N ->
  multi_state order n x S0 T = general_state order (flat n x) S0 (T * n).
Proof.
move=> n0; elim: T => // T IH; rewrite mulSn addnC /general_state walk_from.
rewrite /multi_state /= -/(multi_state _ _ _ _ _) IH; apply: eq_walk => s sn M.
by rewrite /from /flat divnMDl // divn_small // addn0 modnMDl modn_small.
Qed.

Lemma reads_seen n t : (0 < n)%N -> seen ro (reads n t) = (seen ro t * n)%N.
Proof.
by move=> n0; rewrite /reads; case: ro => //=; rewrite -addnS prednK // mulSnr.
Qed.

Lemma gq_flat n x t : (0 < n)%N -> gq (flat n x (reads n t)) = gq (x t 0%N).
Proof.
move=> n0; rewrite /flat /reads; case: ro; last first.
  by rewrite mulnK // modnMl.
rewrite divnMDl // divn_small ?prednK // addn0 modnMDl modn_small ?prednK //.
by case: n.-1.
Qed.

Lemma multi_output_flat n x S0 t : (0 < n)%N ->
  multi_output order ro scale n x S0 t
  = general_output order ro scale (flat n x) S0 (reads n t).
Proof.
by move=> n0; rewrite /general_output reads_seen // gq_flat // -multi_state_flat.
Qed.

(** WY-10 with n sub-steps a token: chunks of any lengths. *)
Theorem multi_chunked_is_recurrent n lengths x S0 : (0 < n)%N ->
  (forall t i, ge (x t i) = ones) ->
  (order = before -> forall t, gd (x t 0%N) = ones) ->
  multi_chunked n lengths x S0 = multi_recurrent n x S0 (sumn lengths).
Proof.
move=> n0 key_axis before_needs; rewrite /multi_chunked.
rewrite general_chunked_is_recurrent; first 1 last.
- by move=> s; rewrite /flat /substep; case: (s %% n)%N => [|i] /=.
- move=> E s; rewrite /flat /substep; case: (s %% n)%N => [|i] //=.
  exact: before_needs.
have -> : sumn [seq (C * n)%N | C <- lengths] = (sumn lengths * n)%N.
  by elim: (lengths) => //= C l ->; rewrite mulnDl.
rewrite /multi_recurrent multi_state_flat //; congr (_, _).
apply/eq_in_map => t; rewrite mem_iota /= add0n => tT.
rewrite nth_mkseq -?multi_output_flat //.
apply: leq_trans (_ : t.+1 * n <= _)%N; last by rewrite leq_mul2r tT orbT.
by rewrite mulSnr /reads; case: (ro); rewrite ?ltn_add2l ?prednK // -addn1 leq_add2l.
Qed.

(** Gates on the value axis, value decays under an erase that reads before:
    column by column, each a general step of one value channel. *)
Definition general_column j (x : general R K V) : general R K 1 :=
  General (gq x) (gk x) (gd x j 0 *: ga x) (ge x j 0 *: gr x) (gy x)
          (row j (gv x)) ones ones (row j (gw x)).

Lemma general_column_step j x (S : 'M[R]_(K, V)) :
  general_step order (general_column j x) (col j S)
  = col j (general_step order x S).
Proof.
apply/colP=> i; rewrite [RHS]mxE !subE !addE !general_decayedE !outerE.
rewrite !elementwiseE !tr_mulE /=.
rewrite !scaleE ![ones _ _]mxE ![col _ _ _ _]mxE ![row _ _ _ _]mxE.
rewrite mul1r mulr1; congr (_ + _ - _ * _); first by ring.
rewrite mulr_sumr; apply: eq_bigr => l _; rewrite scaleE -mulrA.
congr (_ * (_ * _)); rewrite /looked_up; case: order; last by rewrite mxE.
by rewrite !general_decayedE /= scaleE [ones _ _]mxE [col _ _ _ _]mxE; ring.
Qed.

End WY10.

(** The general step column by column, with everything it has. *)
Theorem general_columnwise (R : comRingType) K V order ro (scale : R) lengths
    (x : nat -> general R K V) S0 j :
  let all := general_recurrent order ro scale x S0 (sumn lengths) in
  general_chunked order ro scale lengths (general_column j \o x) (col j S0)
  = ([seq row j o | o <- all.1], col j all.2).
Proof.
move=> all; rewrite general_chunked_is_recurrent //.
have states t : general_state order (general_column j \o x) (col j S0) t
    = col j (general_state order x S0 t).
  elim: t => // t IH; rewrite /general_state /= -!/(general_state _ _ _ t) IH.
  exact: general_column_step.
rewrite /all /general_recurrent /= states; congr (_, _).
rewrite -map_comp; apply: eq_map => t /=; rewrite /general_output states /=.
by apply/matrixP=> i l; rewrite !mxE; congr (_ * _); apply: eq_bigr => m _;
  rewrite !mxE.
Qed.
