(** Are the published models settings of one recurrence?  RED-1, RED-4, RED-6:
    each model's own step, written with its transition matrix, is the step of
    recurrence.v with gates tied, or the general one.  All hold over any
    commutative ring, the dual numbers among them, hence for derivatives. *)
From carve Require Import recurrence chunk column wy columns general segment.

Section Family.
Variables (R : comRingType) (K V : nat).
Implicit Types (S : 'M[R]_(K, V)) (q k a b r p kappa eta : 'cV[R]_K).
Implicit Types (v w : 'cV[R]_V) (alpha beta : R).

(** The models' own steps, as their papers write them. *)
Definition kda_step k a v beta S :=
  (1%:M - beta *: (k *m k^T)) *m (diag a *m S) + beta *: (k *m v^T).
Definition gdn_step k alpha v beta S :=
  alpha *: ((1%:M - beta *: (k *m k^T)) *m S) + beta *: (k *m v^T).
Definition delta_step k v beta S :=
  (1%:M - beta *: (k *m k^T)) *m S + beta *: (k *m v^T).
Definition gla_step k a v S := diag a *m S + k *m v^T.
Definition mamba2_step k alpha v S := alpha *: S + k *m v^T.
Definition linear_step k v S := S + k *m v^T.

(** As tokens of the one recurrence. *)
Definition gdn2_token q k v a b w : token R K V := Token q k a b v ones ones w.
Definition kda_token q k v a beta :=
  gdn2_token q k v a (const_mx beta) (const_mx beta).
Definition gdn_token q k v alpha beta := kda_token q k v (const_mx alpha) beta.
Definition delta_token q k v beta := gdn_token q k v 1 beta.
Definition gla_token q k v a := gdn2_token q k v a 0 ones.
Definition mamba2_token q k v alpha := gla_token q k v (const_mx alpha).
Definition linear_token q k v := mamba2_token q k v 1.

Lemma diag_const n c : diag (const_mx c : 'cV[R]_n) = c%:M.
Proof. by apply/matrixP=> i j; rewrite !mxE. Qed.

Lemma gdn2_stepE q k v a b w S :
  step (gdn2_token q k v a b w) S =
  (1%:M - k *m (b .* k)^T) *m (diag a *m S) + k *m (w .* v)^T.
Proof.
rewrite /step /update /decayed /= diag_ones mulmx1 elementwise_ones.
rewrite linearB /= trmx_mul trmxK mulmxBr mulmxBl mul1mx -mulmxA.
by rewrite addrA addrAC.
Qed.

Lemma const_elementwise m c (x : 'cV[R]_m) : const_mx c .* x = c *: x.
Proof. by apply/colP=> i; rewrite !mxE. Qed.

(** RED-1 *)
Theorem gdn2_is_kda q k v a beta S :
  step (gdn2_token q k v a (const_mx beta) (const_mx beta)) S
  = kda_step k a v beta S.
Proof.
rewrite /kda_step gdn2_stepE !const_elementwise ![(_ *: _)^T]linearZ /=.
by rewrite -!scalemxAr.
Qed.

Theorem kda_is_gdn q k v alpha beta S :
  step (kda_token q k v (const_mx alpha) beta) S = gdn_step k alpha v beta S.
Proof.
by rewrite gdn2_is_kda /kda_step diag_const mul_scalar_mx -scalemxAr.
Qed.

Theorem gdn_is_delta q k v beta S :
  step (gdn_token q k v 1 beta) S = delta_step k v beta S.
Proof. by rewrite kda_is_gdn /gdn_step scale1r. Qed.

Theorem no_erase_is_gla q k v a S :
  step (gdn2_token q k v a 0 ones) S = gla_step k a v S.
Proof.
rewrite gdn2_stepE elementwise_ones (_ : 0 .* k = 0).
  by rewrite linear0 mulmx0 subr0 mul1mx.
by apply/colP=> i; rewrite !mxE mul0r.
Qed.

Theorem gla_is_mamba2 q k v alpha S :
  step (gla_token q k v (const_mx alpha)) S = mamba2_step k alpha v S.
Proof. by rewrite no_erase_is_gla /gla_step diag_const mul_scalar_mx. Qed.

Theorem mamba2_is_linear q k v S :
  step (mamba2_token q k v 1) S = linear_step k v S.
Proof. by rewrite gla_is_mamba2 /mamba2_step scale1r. Qed.

(** RED-4: w and v act through w * v alone. *)
Definition same_but_write (x y : token R K V) :=
  [/\ [/\ recurrence.q x = recurrence.q y, recurrence.k x = recurrence.k y,
          recurrence.a x = recurrence.a y & recurrence.b x = recurrence.b y],
      d x = d y, e x = e y &
      recurrence.w x .* recurrence.v x = recurrence.w y .* recurrence.v y].

Theorem write_through_product ro scale (x y : nat -> token R K V) S0 T :
  (forall t, same_but_write (x t) (y t)) ->
  recurrent ro scale x S0 T = recurrent ro scale y S0 T.
Proof.
move=> H.
have steps t S : step (x t) S = step (y t) S.
  rewrite /step /update /address /decayed.
  by have [[_ -> -> ->] -> -> ->] := H t.
have states t : state x S0 t = state y S0 t.
  by elim: t => //= t IH; rewrite /state /= -!/(state _ S0 t) IH steps.
rewrite /recurrent states; congr (_, _); apply: eq_mkseq => t.
by rewrite /output /read states; have [[-> _ _ _] _ _ _] := H t.
Qed.

(** RED-6.  One pair of addresses: *)
Definition general_of q k a r y v w : general R K V :=
  General q k a r y v ones ones w.

Lemma general_ofE order q k a r y v w S :
  general_step order (general_of q k a r y v w) S =
  diag a *m S - y *m (r^T *m (if order is after then diag a *m S else S))
  + k *m (w .* v)^T.
Proof.
rewrite /general_step /looked_up /general_decayed /= diag_ones mulmx1.
by rewrite elementwise_ones trmx_mul trmxK addrAC.
Qed.

(** Comba: looked up at beta p, taken away at k; after or before the decay. *)
Theorem comba_after q k a p v w beta S :
  general_step after (general_of q k a (beta *: p) k v w) S =
  (1%:M - beta *: (k *m p^T)) *m (diag a *m S) + k *m (w .* v)^T.
Proof.
rewrite general_ofE mulmxBl mul1mx linearZ /= -!scalemxAl -scalemxAr.
by rewrite mulmxA.
Qed.
Theorem comba_before q k a p v w beta S :
  general_step before (general_of q k a (beta *: p) k v w) S =
  (diag a - beta *: (k *m p^T)) *m S + k *m (w .* v)^T.
Proof.
rewrite general_ofE mulmxBl linearZ /= -!scalemxAl -scalemxAr.
by rewrite mulmxA.
Qed.

(** DPLR: a diagonal plus b_lr a_lr^T, of the state before it decays. *)
Definition dplr_of q k a a_lr b_lr v := general_of q k a a_lr (- b_lr) v ones.
Theorem dplr q k a a_lr b_lr v S :
  general_step before (dplr_of q k a a_lr b_lr v) S =
  (diag a + b_lr *m a_lr^T) *m S + k *m v^T.
Proof.
by rewrite general_ofE elementwise_ones mulNmx opprK mulmxDl mulmxA.
Qed.

(** RWKV-7: DPLR with a_lr = - kappa and b_lr = kappa * eta. *)
Theorem rwkv7 q k a kappa eta v S :
  general_step before (dplr_of q k a (- kappa) (kappa .* eta) v) S =
  (diag a - (kappa .* eta) *m kappa^T) *m S + k *m v^T.
Proof. by rewrite dplr linearN /= mulmxN. Qed.

(** Gated DeltaProduct: n sub-steps of delta, one decay. *)
Definition delta_substep q alpha (k : nat -> 'cV[R]_K) (v : nat -> 'cV[R]_V)
    (beta : nat -> R) i :=
  general_of q (k i) (const_mx alpha) (beta i *: k i) (k i) (v i)
             (const_mx (beta i)).
Fixpoint delta_product_step alpha (k : nat -> 'cV[R]_K) (v : nat -> 'cV[R]_V)
    (beta : nat -> R) n S : 'M[R]_(K, V) :=
  if n is m.+1
  then delta_step (k m) (v m) (beta m) (delta_product_step alpha k v beta m S)
  else alpha *: S.

Lemma erase_outer k beta S :
  S - k *m ((beta *: k)^T *m S) = (1%:M - beta *: (k *m k^T)) *m S.
Proof. by rewrite mulmxBl mul1mx linearZ /= -!scalemxAl -scalemxAr mulmxA. Qed.

Lemma const_write k beta v : k *m (const_mx beta .* v)^T = beta *: (k *m v^T).
Proof. by rewrite const_elementwise [(_ *: _)^T]linearZ -scalemxAr. Qed.

Theorem delta_product q alpha (k : nat -> 'cV[R]_K) (v : nat -> 'cV[R]_V)
    (beta : nat -> R) n S : (0 < n)%N ->
  multi_step after n (delta_substep q alpha k v beta) S =
  delta_product_step alpha k v beta n S.
Proof.
case: n => // n _; elim: n => [|n IH].
  rewrite /multi_step /= general_ofE const_write diag_const mul_scalar_mx.
  by rewrite erase_outer.
rewrite -[n.+2]addn1 /multi_step walk_from -/(multi_step _ _ _ _) IH.
rewrite [LHS](_ : _ = general_step after (general_of q (k n.+1) ones
  (beta n.+1 *: k n.+1) (k n.+1) (v n.+1) (const_mx (beta n.+1)))
  (delta_product_step alpha k v beta n.+1 S)); last by rewrite /= /from addn0.
by rewrite general_ofE diag_ones mul1mx erase_outer const_write addn1.
Qed.

(** EDA: erase along a direction of its own, nothing written; then delta at k. *)
Definition eda_substep q k n v a (eta beta : R) i :=
  if i is 0 then general_of q n a (eta *: n) n v 0
  else general_of q k a (beta *: k) k v (const_mx beta).
Theorem eda q k n v a (eta beta : R) S :
  multi_step after 2 (eda_substep q k n v a eta beta) S =
  delta_step k v beta ((1%:M - eta *: (n *m n^T)) *m (diag a *m S)).
Proof.
rewrite /multi_step /= -[General _ _ ones _ _ _ _ _ _]/(general_of q k ones
  (beta *: k) k v _) !general_ofE diag_ones mul1mx (_ : 0 .* v = 0); last first.
  by apply/colP=> i; rewrite !mxE mul0r.
by rewrite linear0 mulmx0 addr0 !erase_outer const_write.
Qed.

(** Mamba-3, trapezoid: two writes a token, nothing erased. *)
Definition mamba3_substep q k_last v_last k v w_last w alpha i :=
  let write k v w := general_of q k (const_mx alpha) 0 0 v w in
  if i is 0 then write k_last v_last w_last else write k v w.
Theorem mamba3 q k_last v_last k v w_last w alpha S :
  multi_step after 2 (mamba3_substep q k_last v_last k v w_last w alpha) S =
  alpha *: S + k_last *m (w_last .* v_last)^T + k *m (w .* v)^T.
Proof.
rewrite /multi_step /= -[General _ _ ones _ _ _ _ _ _]/(general_of q k ones
  0 0 v _) !general_ofE.
by rewrite diag_ones !mul1mx diag_const mul_scalar_mx !mul0mx !subr0.
Qed.

End Family.
