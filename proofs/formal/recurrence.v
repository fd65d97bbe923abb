(** What is the gated delta rule?  The definition that every theorem of this
    folder is about, over any commutative ring: no division, no order, nothing
    transcendental.  A vector is a column, and tokens are numbered from 0. *)
From mathcomp Require Export all_ssreflect all_algebra ring.

(** What every file of this folder takes from here. *)
#[export] Set Implicit Arguments.
#[export] Unset Strict Implicit.
#[export] Unset Printing Implicit Defensive.
Export GRing.Theory.
Global Open Scope ring_scope.

(** Element by element, and a vector as a diagonal matrix. *)
Definition elementwise (R : comRingType) m n (A B : 'M[R]_(m, n)) :=
  \matrix_(i, j) (A i j * B i j).
Notation "A .* B" := (elementwise A B)
  (at level 40, left associativity) : ring_scope.
Definition diag (R : comRingType) n (x : 'cV[R]_n) : 'M[R]_n := diag_mx x^T.
Notation ones := (const_mx 1).

(** A run of tokens from token m on. *)
Definition from (X : Type) m (x : nat -> X) : nat -> X := fun t => x (m + t)%N.

(** The state before token t of a rule that takes one token at a time. *)
Fixpoint walk (X S : Type) (step : X -> S -> S) (x : nat -> X) (S0 : S) t : S :=
  if t is t'.+1 then step (x t') (walk step x S0 t') else S0.

(** Which state the read-out of a token sees, counted in tokens taken in. *)
Inductive readout := after | before.
Definition seen ro t := if ro is after then t.+1 else t.

Section Recurrence.
Variables (R : comRingType) (K V : nat).
Local Notation state_matrix := 'M[R]_(K, V).

(** One recurrence for the whole family. *)
Record token := Token {
  q : 'cV[R]_K;  (* query *)
  k : 'cV[R]_K;  (* key *)
  a : 'cV[R]_K;  (* decay of the key axis *)
  b : 'cV[R]_K;  (* erase gate of the key axis *)
  v : 'cV[R]_V;  (* value *)
  d : 'cV[R]_V;  (* decay of the value axis *)
  e : 'cV[R]_V;  (* erase gate of the value axis *)
  w : 'cV[R]_V   (* write gate *)
}.

Definition decayed x (S : state_matrix) := diag (a x) *m S *m diag (d x).
Definition address x := b x .* k x.
Definition update x S := w x .* v x - e x .* ((decayed x S)^T *m address x).
Definition step x S := decayed x S + k x *m (update x S)^T.
Definition read scale x (S : state_matrix) := scale *: (S^T *m q x).

(** State before token t, and output of token t. *)
Definition state := walk step.
Definition output ro scale x S0 t := read scale (x t) (state x S0 (seen ro t)).
(** Outputs of T tokens, and the state after them. *)
Definition recurrent ro scale x S0 T :=
  (mkseq (output ro scale x S0) T, state x S0 T).

(** An erase gate that is a full mask takes the place of b and e. *)
Record masked := Masked { bare :> token; E : 'M[R]_(K, V) }.
Definition mask_update (x : masked) S :=
  w x .* v x - (E x .* decayed x S)^T *m k x.
Definition mask_step (x : masked) S := decayed x S + k x *m (mask_update x S)^T.
Definition mask_state := walk mask_step.
Definition mask_output ro scale (x : nat -> masked) S0 t :=
  read scale (x t) (mask_state x S0 (seen ro t)).

(** The general step: an erase address r and an erase direction y of its own,
    and an erase that reads after or before the decay. *)
Record general := General {
  gq : 'cV[R]_K; gk : 'cV[R]_K; ga : 'cV[R]_K;
  gr : 'cV[R]_K;  (* erase address *)
  gy : 'cV[R]_K;  (* erase direction *)
  gv : 'cV[R]_V; gd : 'cV[R]_V; ge : 'cV[R]_V; gw : 'cV[R]_V
}.
Definition general_decayed x (S : state_matrix) :=
  diag (ga x) *m S *m diag (gd x).
Definition looked_up order x S :=
  if order is after then general_decayed x S else S.
Definition general_step order x S :=
  general_decayed x S + gk x *m (gw x .* gv x)^T
  - gy x *m (ge x .* ((looked_up order x S)^T *m gr x))^T.
Definition general_state order := walk (general_step order).
Definition general_output order ro scale x S0 t :=
  scale *: ((general_state order x S0 (seen ro t))^T *m gq (x t)).

(** Sub-steps: n a token, each with its own k, r, y, v, e, w.  The decay is once,
    before the first; the query is the token's, read once, after the last (or
    before the first).  So sub-steps are steps of which only the first decays. *)
Definition substep (x : nat -> general) i :=
  if i is 0 then x 0%N
  else General (gq (x 0%N)) (gk (x i)) ones (gr (x i)) (gy (x i))
               (gv (x i)) ones (ge (x i)) (gw (x i)).
Definition multi_step order n x S := walk (general_step order) (substep x) S n.
Definition multi_state order n := walk (multi_step order n).
Definition multi_output order ro scale n x S0 t :=
  scale *: ((multi_state order n x S0 (seen ro t))^T *m gq (x t 0%N)).

(** A token of the first kind as a general one. *)
Definition generalize x :=
  General (q x) (k x) (a x) (address x) (k x) (v x) (d x) (e x) (w x).

End Recurrence.

Arguments Token {R K V}.
Arguments General {R K V}.

Section Basics.
Variables (R : comRingType).
Implicit Types (m n K V : nat).

Lemma elementwiseE m n (A B : 'M[R]_(m, n)) i j :
  (A .* B) i j = A i j * B i j.
Proof. by rewrite mxE. Qed.

Lemma scaleE m n c (A : 'M[R]_(m, n)) i j : (c *: A) i j = c * A i j.
Proof. by rewrite mxE. Qed.

Lemma elementwise_ones m n (A : 'M[R]_(m, n)) : ones .* A = A.
Proof. by apply/matrixP=> i j; rewrite !mxE mul1r. Qed.

Lemma elementwiseC m n (A B : 'M[R]_(m, n)) : A .* B = B .* A.
Proof. by apply/matrixP=> i j; rewrite !mxE mulrC. Qed.

Lemma elementwiseA m n (A B C : 'M[R]_(m, n)) : A .* (B .* C) = A .* B .* C.
Proof. by apply/matrixP=> i j; rewrite !mxE mulrA. Qed.

Lemma diag_mulE K V (x : 'cV[R]_K) (A : 'M[R]_(K, V)) i j :
  (diag x *m A) i j = x i 0 * A i j.
Proof. by rewrite /diag mul_diag_mx !mxE. Qed.

Lemma mul_diagE K V (x : 'cV[R]_V) (A : 'M[R]_(K, V)) i j :
  (A *m diag x) i j = A i j * x j 0.
Proof. by rewrite /diag mul_mx_diag !mxE. Qed.

Lemma diag_ones n : diag (ones : 'cV[R]_n) = 1%:M.
Proof.
by apply/matrixP=> i j; rewrite !mxE.
Qed.

Lemma outerE K V (x : 'cV[R]_K) (y : 'cV[R]_V) i j :
  (x *m y^T) i j = x i 0 * y j 0.
Proof. by rewrite mxE big_ord1 !mxE. Qed.

Lemma tr_mulE K V (S : 'M[R]_(K, V)) (x : 'cV[R]_K) j :
  (S^T *m x) j 0 = \sum_i x i 0 * S i j.
Proof. by rewrite mxE; apply: eq_bigr => i _; rewrite mxE mulrC. Qed.

Lemma decayedE K V (x : token R K V) S i j :
  (decayed x S) i j = a x i 0 * d x j 0 * S i j.
Proof. by rewrite /decayed mul_diagE diag_mulE mulrAC. Qed.

Lemma general_decayedE K V (x : general R K V) S i j :
  (general_decayed x S) i j = ga x i 0 * gd x j 0 * S i j.
Proof. by rewrite /general_decayed mul_diagE diag_mulE mulrAC. Qed.

Lemma updateE K V (x : token R K V) S j :
  (update x S) j 0 = w x j 0 * v x j 0
    - e x j 0 * \sum_i address x i 0 * decayed x S i j.
Proof. by rewrite /update mxE [X in _ + X]mxE !elementwiseE tr_mulE. Qed.

Lemma readE K V scale (x : token R K V) S j :
  (read scale x S) j 0 = scale * \sum_i q x i 0 * S i j.
Proof. by rewrite /read mxE tr_mulE. Qed.

Lemma stepE K V (x : token R K V) S i j :
  (step x S) i j = a x i 0 * d x j 0 * S i j + k x i 0 * (update x S) j 0.
Proof. by rewrite /step mxE decayedE outerE. Qed.

Lemma walk_from X S (f : X -> S -> S) x S0 m n :
  walk f x S0 (m + n) = walk f (from m x) (walk f x S0 m) n.
Proof. by elim: n => [|n IH]; rewrite ?addn0 // addnS /= IH. Qed.

Lemma eq_walk X Y S (f : X -> S -> S) (g : Y -> S -> S) x y S0 t :
  (forall s, (s < t)%N -> forall M, f (x s) M = g (y s) M) ->
  walk f x S0 t = walk g y S0 t.
Proof.
elim: t => //= t IH H; rewrite IH; last by move=> s st; apply: H; apply: leqW.
by apply: H.
Qed.

(** A sum over the tokens before t, inside a chunk. *)
Lemma sum_before C t (f : nat -> R) : (t <= C)%N ->
  \sum_(s < t) f s = \sum_(s < C) (if (s < t)%N then f s else 0).
Proof.
by move=> tC; rewrite (big_ord_widen _ f tC) big_mkcond.
Qed.

End Basics.
