(** Does CARVE's content gate keep the chunked form?  Yes (WY-7): the gate of a
    window is any function of the outputs of the window before, so it is known
    when the window starts; chunks of any lengths inside the windows give the
    recurrence, whatever the window length. *)
From carve Require Import recurrence chunk column wy.

Section Content.
Variables (R : comRingType) (K V : nat) (ro : readout) (scale : R).
Variable Lc : nat.
Hypothesis Lc_positive : (0 < Lc)%N.
(** Gate of a token from the outputs of the window before (none for the first
    window) and the token's logits, which stand in the place of its gate b. *)
Variable gate : seq 'cV[R]_V -> 'cV[R]_K -> 'cV[R]_K.

Definition with_gate os (x : token R K V) :=
  Token (q x) (k x) (a x) (gate os (b x)) (v x) (d x) (e x) (w x).

(** Outputs of window c - 1 of a sequence of gated tokens. *)
Definition window_before (y : nat -> token R K V) S0 c :=
  if c is c'.+1
  then mkseq (fun t => output ro scale y S0 (c' * Lc + t)) Lc else [::].

(** y is the sequence x with its content gates: each token's gate is made from
    the outputs, by the recurrence, of the window before. *)
Definition content_gated (x y : nat -> token R K V) S0 :=
  forall t, y t = with_gate (window_before y S0 (t %/ Lc)) (x t).

(** Window after window; the chunks of a window of n tokens are `cut n`. *)
Fixpoint content_chunked (cut : nat -> seq nat) (windows : seq nat) before x S0 :=
  if windows is n :: rest then
    let now := chunked ro scale (cut n) (fun t => with_gate before (x t)) S0 in
    let later := content_chunked cut rest now.1 (from n x) now.2 in
    (now.1 ++ later.1, later.2)
  else ([::], S0).

Lemma eq_state (x y : nat -> token R K V) S0 n :
  (forall t, (t < n)%N -> x t = y t) -> state x S0 n = state y S0 n.
Proof.
elim: n => // n IH H; rewrite /state /= -!/(state _ S0 n) IH.
  by rewrite H.
by move=> t tn; apply: H; apply: ltnW.
Qed.

Lemma eq_recurrent (x y : nat -> token R K V) S0 n :
  (forall t, (t < n)%N -> x t = y t) ->
  recurrent ro scale x S0 n = recurrent ro scale y S0 n.
Proof.
move=> H; rewrite /recurrent (eq_state _ H); congr (_, _).
apply/eq_in_map => t; rewrite mem_iota /= add0n => tn.
rewrite /output H //; congr (read _ _ _); apply: eq_state => s st; apply: H.
apply: leq_trans st _; case: (ro) => //=; exact: ltnW.
Qed.

Section Walk.
Variables (x y : nat -> token R K V) (S0 : 'M[R]_(K, V)).
Variable cut : nat -> seq nat.
Hypothesis cut_sum : forall n, sumn (cut n) = n.
Hypothesis key_axis : key_axis_erase x.
Hypothesis gated : content_gated x y S0.

(** A window of at most Lc tokens, from its start state. *)
Lemma one_window c n x' y' : (n <= Lc)%N ->
  (forall t, x' t = x (c * Lc + t)) -> (forall t, y' t = y (c * Lc + t)) ->
  chunked ro scale (cut n) (fun t => with_gate (window_before y S0 c) (x' t))
    (state y S0 (c * Lc))
  = recurrent ro scale y' (state y S0 (c * Lc)) n.
Proof.
move=> nLc Ex Ey; rewrite chunked_any_lengths ?cut_sum; last first.
  by move=> t; rewrite Ex; exact: key_axis.
apply: eq_recurrent => t tn; rewrite Ex Ey gated divnMDl //.
by rewrite divn_small ?addn0 // (leq_trans tn).
Qed.

Lemma from_window c m r x' y' : (r <= Lc)%N ->
  (forall t, x' t = x (c * Lc + t)) -> (forall t, y' t = y (c * Lc + t)) ->
  content_chunked cut (rcons (nseq m Lc) r) (window_before y S0 c) x'
    (state y S0 (c * Lc))
  = recurrent ro scale y' (state y S0 (c * Lc)) (m * Lc + r).
Proof.
move=> rLc; elim: m c x' y' => [|m IH] c x' y' Ex Ey /=.
  by rewrite (one_window rLc Ex Ey) /recurrent /= cats0.
rewrite (one_window (leqnn Lc) Ex Ey) mulSn -addnA [in RHS]/recurrent.
have step : (c.+1 * Lc = c * Lc + Lc)%N by rewrite mulSn addnC.
have next : state y' (state y S0 (c * Lc)) Lc = state y S0 (c.+1 * Lc).
  rewrite step /state walk_from; apply: eq_state => t _; exact: Ey.
have out t : output ro scale y' (state y S0 (c * Lc)) t
    = output ro scale y S0 (c * Lc + t).
  rewrite /output Ey seen_from /state walk_from; congr (read _ _ _).
  by apply: eq_state => s _; exact: Ey.
rewrite /recurrent /= next.
have -> : mkseq (output ro scale y' (state y S0 (c * Lc))) Lc
    = window_before y S0 c.+1 by apply: eq_mkseq => t; exact: out.
have shift f g : (forall t, f t = g (c * Lc + t)%N) ->
    forall t, from Lc f t = g (c.+1 * Lc + t)%N :> token R K V.
  by move=> E t; rewrite /from E addnA step.
rewrite (IH c.+1 (from Lc x') (from Lc y') (shift _ _ Ex) (shift _ _ Ey)).
rewrite /recurrent /= (mkseq_cat _ Lc) -next /state -walk_from.
congr (_ ++ _, _); first by apply: eq_mkseq => t; rewrite out.
apply: eq_mkseq => t; rewrite /output seen_from /state walk_from.
by rewrite /from.
Qed.

(** WY-7 *)
Theorem content_gate_keeps_chunks T :
  content_chunked cut (chunk_lengths Lc T) [::] x S0
  = recurrent ro scale y S0 T.
Proof.
have := @from_window 0 (T %/ Lc) (T %% Lc) x y.
rewrite /chunk_lengths mul0n /= -divn_eq; apply => //.
exact/ltnW/ltn_pmod.
Qed.

End Walk.

(** Such a sequence of gated tokens there is, made one token after another. *)
Fixpoint gated_prefix (x : nat -> token R K V) S0 n : nat -> token R K V :=
  if n is m.+1 then
    let y := gated_prefix x S0 m in
    fun t => if t == m then with_gate (window_before y S0 (m %/ Lc)) (x m)
             else y t
  else x.
Definition content_tokens x S0 t := gated_prefix x S0 t.+1 t.

Lemma gated_prefix_later x S0 m n t : (t < m)%N -> (m <= n)%N ->
  gated_prefix x S0 n t = gated_prefix x S0 m t.
Proof.
move=> tm; elim: n => [|n IH]; first by rewrite leqn0 => /eqP E; rewrite E in tm.
rewrite leq_eqVlt => /orP[/eqP -> //|mn] /=.
by rewrite ltn_eqF ?IH // (leq_trans tm).
Qed.

Lemma eq_window_before (y z : nat -> token R K V) S0 n :
  (forall t, (t < n)%N -> y t = z t) ->
  window_before y S0 (n %/ Lc) = window_before z S0 (n %/ Lc).
Proof.
move=> H; case E: (n %/ Lc)%N => [//|c] /=.
apply/eq_in_map => t; rewrite mem_iota /= add0n => tL.
have tn : (c * Lc + t < n)%N.
  apply: (@leq_trans (c.+1 * Lc)); first by rewrite mulSn addnC ltn_add2r.
  by rewrite -E leq_trunc_div.
rewrite /output H //; congr (read _ _ _); apply: eq_state => s st; apply: H.
apply: leq_ltn_trans tn; move: st; case: (ro) => //= /ltnW //.
Qed.

Theorem content_tokens_gated x S0 : content_gated x (content_tokens x S0) S0.
Proof.
move=> t; rewrite {1}/content_tokens /= eqxx; congr (with_gate _ _).
apply: eq_window_before => s st.
by rewrite /content_tokens; exact: gated_prefix_later.
Qed.

End Content.
