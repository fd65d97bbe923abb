(** What are the gradients of the published models?  RED-1 and RED-6 over dual
    numbers: a model's step has the derivative of the general recurrence at its
    settings, and the gradient of a tied gate is the sum over its uses. *)
From carve Require Import recurrence chunk column wy columns general segment.
From carve Require Import family dual gradient.

Section Tied.
Variables (R : comRingType) (K V : nat).
Local Notation D := (dual_comRingType R).
Implicit Types (S : 'M[dual R]_(K, V)) (q k a r p y : 'cV[dual R]_K).
Implicit Types (v w : 'cV[dual R]_V) (alpha beta eta : dual R).

(** The sum of a gradient over its channels. *)
Definition total n (g : 'cV[R]_n) := \sum_i g i 0.

Lemma inner_const n (g : 'cV[R]_n) (c : dual R) :
  inner g (slope (const_mx c)) = total g * du c.
Proof.
rewrite /inner mulr_suml; apply: eq_bigr => i _.
by rewrite big_ord1 slopeE mxE.
Qed.

Lemma inner_fixed n (g : 'cV[R]_n) (c : R) :
  inner g (slope (const_mx (Dual c 0))) = 0.
Proof. by rewrite inner_const mulr0. Qed.

Lemma inner_ones n (g : 'cV[R]_n) : inner g (slope (ones : 'cV[dual R]_n)) = 0.
Proof. exact: inner_fixed. Qed.

Lemma inner_zero n (g : 'cV[R]_n) : inner g (slope (0 : 'cV[dual R]_n)) = 0.
Proof.
by rewrite (_ : slope 0 = 0) ?inner0r //; apply/colP=> i; rewrite !mxE.
Qed.

Lemma inner_times n (g : 'cV[R]_n) c (x : 'cV[dual R]_n) :
  inner g (slope (c *: x))
  = inner g (value x) * du c + inner (re c *: g) (slope x).
Proof.
have -> : slope (c *: x) = re c *: slope x + du c *: value x.
  by apply/colP=> i; rewrite !mxE du_mul.
by rewrite innerDr !innerZr innerZl addrC mulrC.
Qed.

Lemma inner_opp n (g : 'cV[R]_n) (x : 'cV[dual R]_n) :
  inner g (slope (- x)) = inner (- g) (slope x).
Proof.
have -> : slope (- x) = - slope x by apply/colP=> i; rewrite !mxE.
by rewrite innerNr innerNl.
Qed.

(** A model whose step is that of tokens has the derivative of these tokens. *)
Theorem model_gradient ro (scale : R)
    (step_of : nat -> 'M[dual R]_(K, V) -> 'M[dual R]_(K, V))
    (X : nat -> token D K V) S0 (do_ : nat -> 'cV[R]_V) (dS : 'M[R]_(K, V))
    T g0 :
  (forall t S, step_of t S = step (X t) S) ->
  let model := walk step_of id S0 in
  let walked := token_walk ro scale (fun t => value_token (X t)) (value S0)
                           do_ T dS in
  \sum_(t < T) inner (do_ t)
    (slope (read (Dual scale 0) (X t) (model (seen ro t))))
  + inner dS (slope (model T))
  = \sum_(t < T) against_token (nth g0 walked.1 t) (X t)
    + inner walked.2 (slope S0).
Proof.
move=> E model walked; rewrite -reverse_walk_is_gradient.
have states t : model t = state X S0 t.
  by apply: eq_walk => s _ M; exact: E.
by rewrite states; congr (_ + _); apply: eq_bigr => t _; rewrite states.
Qed.

Theorem multi_model_gradient order ro (scale : R) n
    (step_of : nat -> 'M[dual R]_(K, V) -> 'M[dual R]_(K, V))
    (X : nat -> nat -> general D K V) S0 (do_ : nat -> 'cV[R]_V)
    (dS : 'M[R]_(K, V)) T g0 g1 :
  (forall t S, step_of t S = multi_step order n (X t) S) ->
  let model := walk step_of id S0 in
  let walked := multi_walk order ro scale n (fun t i => value_general (X t i))
                           (value S0) do_ T dS in
  \sum_(t < T) inner (do_ t)
    (slope (Dual scale 0 *: ((model (seen ro t))^T *m gq (X t 0%N))))
  + inner dS (slope (model T))
  = \sum_(t < T) against_multi g1 n (nth g0 walked.1 t) (X t)
    + inner walked.2 (slope S0).
Proof.
move=> E model walked; rewrite -multi_walk_is_gradient.
have states t : model t = multi_state order n X S0 t.
  by apply: eq_walk => s _ M; exact: E.
by rewrite states; congr (_ + _); apply: eq_bigr => t _; rewrite states.
Qed.

(** RED-1: what the gradients of a tied token are. *)
Theorem gdn2_tied g q k v a b w :
  against_token g (gdn2_token q k v a b w) =
  inner g.1 (slope q) + inner (c_k g.2) (slope k) + inner (c_a g.2) (slope a)
  + inner (c_b g.2) (slope b) + inner (c_v g.2) (slope v)
  + inner (c_w g.2) (slope w).
Proof.
by rewrite /against_token /against_read /against /= !inner_ones !addr0 !addrA.
Qed.

Theorem kda_tied g q k v a beta :
  against_token g (kda_token q k v a beta) =
  inner g.1 (slope q) + inner (c_k g.2) (slope k) + inner (c_a g.2) (slope a)
  + inner (c_v g.2) (slope v) + (total (c_b g.2) + total (c_w g.2)) * du beta.
Proof.
by rewrite gdn2_tied !inner_const mulrDl addrA; congr (_ + _); exact: addrAC.
Qed.

Theorem gdn_tied g q k v alpha beta :
  against_token g (gdn_token q k v alpha beta) =
  inner g.1 (slope q) + inner (c_k g.2) (slope k) + total (c_a g.2) * du alpha
  + inner (c_v g.2) (slope v) + (total (c_b g.2) + total (c_w g.2)) * du beta.
Proof. by rewrite kda_tied inner_const. Qed.

Theorem delta_tied g q k v beta :
  against_token g (delta_token q k v beta) =
  inner g.1 (slope q) + inner (c_k g.2) (slope k)
  + inner (c_v g.2) (slope v) + (total (c_b g.2) + total (c_w g.2)) * du beta.
Proof. by rewrite gdn_tied mulr0 addr0. Qed.

Theorem gla_tied g q k v a :
  against_token g (gla_token q k v a) =
  inner g.1 (slope q) + inner (c_k g.2) (slope k) + inner (c_a g.2) (slope a)
  + inner (c_v g.2) (slope v).
Proof. by rewrite gdn2_tied inner_zero inner_ones !addr0. Qed.

Theorem mamba2_tied g q k v alpha :
  against_token g (mamba2_token q k v alpha) =
  inner g.1 (slope q) + inner (c_k g.2) (slope k) + total (c_a g.2) * du alpha
  + inner (c_v g.2) (slope v).
Proof. by rewrite gla_tied inner_const. Qed.

Theorem linear_tied g q k v :
  against_token g (linear_token q k v) =
  inner g.1 (slope q) + inner (c_k g.2) (slope k) + inner (c_v g.2) (slope v).
Proof. by rewrite mamba2_tied mulr0 addr0. Qed.

(** RED-6, by step: what is left when value decays and erases are one. *)
Theorem general_tied g q k a r y v w :
  general_against g (general_of q k a r y v w) =
  inner (g_k g) (slope k) + inner (g_a g) (slope a) + inner (g_r g) (slope r)
  + inner (g_y g) (slope y) + inner (g_v g) (slope v) + inner (g_w g) (slope w).
Proof. by rewrite /general_against /= !inner_ones !addr0. Qed.

Theorem comba_tied g q k a p v w beta :
  general_against g (general_of q k a (beta *: p) k v w) =
  inner (g_k g + g_y g) (slope k) + inner (g_a g) (slope a)
  + inner (re beta *: g_r g) (slope p) + inner (g_r g) (value p) * du beta
  + inner (g_v g) (slope v) + inner (g_w g) (slope w).
Proof.
rewrite general_tied inner_times innerDl; congr (_ + _ + _).
move: (inner (g_k g) _) (inner (g_a g) _) (inner (g_y g) _).
move: (inner (g_r g) _ * _) (inner (_ *: g_r g) _).
by move=> t1 t2 t3 t4 t5; ring.
Qed.

Theorem dplr_tied g q k a a_lr b_lr v :
  general_against g (dplr_of q k a a_lr b_lr v) =
  inner (g_k g) (slope k) + inner (g_a g) (slope a) + inner (g_r g) (slope a_lr)
  + inner (- g_y g) (slope b_lr) + inner (g_v g) (slope v).
Proof. by rewrite general_tied inner_opp inner_ones addr0. Qed.

Theorem rwkv7_tied g q k a kappa y v :
  general_against g (dplr_of q k a (- kappa) (kappa .* y) v) =
  inner (g_k g) (slope k) + inner (g_a g) (slope a)
  + inner (- g_r g) (slope kappa)
  + (inner (- g_y g .* value y) (slope kappa)
     + inner (- g_y g .* value kappa) (slope y))
  + inner (g_v g) (slope v).
Proof. by rewrite dplr_tied inner_opp times_adjoint. Qed.

(** A sub-step of delta: Gated DeltaProduct, EDA's second. *)
Theorem delta_substep_tied g q k a v beta :
  general_against g (general_of q k a (beta *: k) k v (const_mx beta)) =
  inner (g_k g + g_y g + re beta *: g_r g) (slope k) + inner (g_a g) (slope a)
  + inner (g_v g) (slope v)
  + (inner (g_r g) (value k) + total (g_w g)) * du beta.
Proof.
rewrite general_tied inner_times inner_const !innerDl mulrDl.
move: (inner (g_k g) _) (inner (g_a g) _) (inner (g_y g) _) (inner (g_v g) _).
move: (inner (g_r g) _ * _) (inner (_ *: g_r g) _) (total _ * _).
by move=> t1 t2 t3 t4 t5 t6 t7; ring.
Qed.

(** EDA's first sub-step: it erases and writes nothing. *)
Theorem eda_erase_tied g q n v a eta :
  general_against g (general_of q n a (eta *: n) n v 0) =
  inner (g_k g + g_y g + re eta *: g_r g) (slope n) + inner (g_a g) (slope a)
  + inner (g_v g) (slope v) + inner (g_r g) (value n) * du eta.
Proof.
rewrite general_tied inner_times inner_zero !innerDl.
move: (inner (g_k g) _) (inner (g_a g) _) (inner (g_y g) _) (inner (g_v g) _).
move: (inner (g_r g) _ * _) (inner (_ *: g_r g) _).
by move=> t1 t2 t3 t4 t5 t6; ring.
Qed.

(** A write of Mamba-3. *)
Theorem mamba3_write_tied g q k v w alpha :
  general_against g (general_of q k (const_mx alpha) 0 0 v w) =
  inner (g_k g) (slope k) + total (g_a g) * du alpha
  + inner (g_v g) (slope v) + inner (g_w g) (slope w).
Proof. by rewrite general_tied !inner_zero inner_const !addr0. Qed.

End Tied.
