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

(** Sub-steps: the decay of a token once, before the first. *)
Definition undecayed (x : general R K V) :=
  General (gq x) (gk x) ones (gr x) (gy x) (gv x) ones (ge x) (gw x).
Definition multi_step order (xs : seq (general R K V)) S :=
  if xs is x :: rest then
    foldl (fun S x => general_step order (undecayed x) S)
          (general_step order x S) rest
  else S.
Definition multi_state order := walk (multi_step order).

(** Gated DeltaProduct: two sub-steps of delta, one decay. *)
Theorem delta_product q k1 k2 v1 v2 alpha beta1 beta2 S :
  let sub k v beta := general_of q k (const_mx alpha) (beta *: k) k v
                                 (const_mx beta) in
  multi_step after [:: sub k1 v1 beta1; sub k2 v2 beta2] S =
  delta_step k2 v2 beta2 (gdn_step k1 alpha v1 beta1 S).
Proof.
rewrite /multi_step /= general_ofE.
rewrite -[undecayed _]/(general_of q k2 ones (beta2 *: k2) k2 v2 _) general_ofE.
rewrite diag_ones mul1mx diag_const mul_scalar_mx.
have erase k beta S' : S' - k *m ((beta *: k)^T *m S')
    = (1%:M - beta *: (k *m k^T)) *m S'.
  by rewrite mulmxBl mul1mx linearZ /= -!scalemxAl -scalemxAr mulmxA.
rewrite !erase !const_elementwise ![(_ *: _)^T]linearZ -!scalemxAr.
by [].
Qed.

(** EDA: erase along a direction of its own, nothing written; then delta at k. *)
Theorem eda q k n v a (eta beta : R) S :
  let erase := general_of q n a (eta *: n) n v 0 in
  let write := general_of q k a (beta *: k) k v (const_mx beta) in
  multi_step after [:: erase; write] S =
  delta_step k v beta ((1%:M - eta *: (n *m n^T)) *m (diag a *m S)).
Proof.
rewrite /multi_step /= general_ofE.
rewrite -[undecayed _]/(general_of q k ones (beta *: k) k v _) general_ofE.
rewrite diag_ones mul1mx (_ : 0 .* v = 0); last first.
  by apply/colP=> i; rewrite !mxE mul0r.
have er k' beta' S' : S' - k' *m ((beta' *: k')^T *m S')
    = (1%:M - beta' *: (k' *m k'^T)) *m S'.
  by rewrite mulmxBl mul1mx linearZ /= -!scalemxAl -scalemxAr mulmxA.
rewrite linear0 mulmx0 addr0 !er [gw _]/= const_elementwise.
by rewrite [(_ *: _)^T]linearZ -scalemxAr.
Qed.

(** Mamba-3, trapezoid: two writes a token, nothing erased. *)
Theorem mamba3 q k_last v_last k v w_last w alpha S :
  let sub k v w := general_of q k (const_mx alpha) 0 0 v w in
  multi_step after [:: sub k_last v_last w_last; sub k v w] S =
  alpha *: S + k_last *m (w_last .* v_last)^T + k *m (w .* v)^T.
Proof.
rewrite /multi_step /= general_ofE.
rewrite -[undecayed _]/(general_of q k ones 0 0 v w) general_ofE.
by rewrite diag_ones !mul1mx diag_const mul_scalar_mx !mul0mx !subr0.
Qed.

End Family.
