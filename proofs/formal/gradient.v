(** Is the reverse walk the derivative?  GRAD-1, for the gates of either axis,
    for full masks and for the general step with sub-steps.  And as WY-1, WY-2
    and WY-10 hold over dual numbers too, the chunked forms have the same
    derivative (GRAD-2, in the form that this gives). *)
From carve Require Import recurrence chunk column wy columns general dual.

(** Any rule of one token at a time, walked from the last token to the first:
    `back` makes, of a token, the state before it, the cotangent of the state
    after it and what arrives at its output, the gradients of the token and the
    cotangent of the state before it. *)
Section Walk.
Variables (R : comRingType) (K V : nat) (X Y arrival gradients : Type).
Local Notation state_matrix := 'M[R]_(K, V).
Local Notation dual_state := 'M[dual R]_(K, V).
Variables (step : Y -> state_matrix -> state_matrix).
Variables (back : Y -> state_matrix -> state_matrix -> arrival ->
                  gradients * state_matrix).

Fixpoint reverse_walk x S0 do_ T dS : seq gradients * state_matrix :=
  if T is t.+1 then
    let g := back (x t) (walk step x S0 t) dS (do_ t) in
    let earlier := reverse_walk x S0 do_ t g.2 in
    (rcons earlier.1 g.1, earlier.2)
  else ([::], dS).

Lemma reverse_walk_size x S0 do_ T dS :
  size (reverse_walk x S0 do_ T dS).1 = T.
Proof. by elim: T dS => //= t IH dS; rewrite size_rcons IH. Qed.

(** Right for one token, it is right for all. *)
Variables (value_of : X -> Y) (f : X -> dual_state -> dual_state).
Variables (heard : arrival -> X -> dual_state -> R).
Variables (against : gradients -> X -> R).
Hypothesis values : forall x S, value (f x S) = step (value_of x) (value S).
Hypothesis one_token : forall x S dS do_,
  let g := back (value_of x) (value S) dS do_ in
  heard do_ x S + inner dS (slope (f x S))
  = against g.1 x + inner g.2 (slope S).

Section Sequence.
Variables (x : nat -> X) (y : nat -> Y).
Hypothesis y_is_value : forall t, value_of (x t) = y t.

Lemma value_walk S0 t : value (walk f x S0 t) = walk step y (value S0) t.
Proof. by elim: t => //= t IH; rewrite values IH y_is_value. Qed.

Lemma all_tokens S0 do_ T dS g0 :
  let walked := reverse_walk y (value S0) do_ T dS in
  \sum_(t < T) heard (do_ t) (x t) (walk f x S0 t)
  + inner dS (slope (walk f x S0 T))
  = \sum_(t < T) against (nth g0 walked.1 t) (x t)
    + inner walked.2 (slope S0).
Proof.
elim: T dS => [|T IH] dS; first by rewrite /= !big_ord0.
rewrite big_ord_recr /= -addrA one_token value_walk y_is_value.
set g := back _ _ _ _; rewrite addrCA IH.
set earlier := reverse_walk _ _ _ _ _.
have size_e : size earlier.1 = T by exact: reverse_walk_size.
rewrite big_ord_recr /= nth_rcons size_e ltnn eqxx addrA; congr (_ + _).
rewrite addrC; congr (_ + _); apply: eq_bigr => t _.
by rewrite nth_rcons size_e ltn_ord.
Qed.

End Sequence.
End Walk.

(** A rule that is also read: what arrives is the cotangent of the output. *)
Section Read.
Variables (R : comRingType) (K V : nat) (ro : readout) (scale : R).
Variables (X Y gradients : Type).
Local Notation state_matrix := 'M[R]_(K, V).
Local Notation dual_state := 'M[dual R]_(K, V).
Variables (step : Y -> state_matrix -> state_matrix) (query : Y -> 'cV[R]_K).
Variables (step_back : Y -> state_matrix -> state_matrix ->
                       gradients * state_matrix).

Definition read_back (q : 'cV[R]_K) (do_ : 'cV[R]_V) := scale *: (q *m do_^T).
Definition read_of (r : readout) q do_ : state_matrix :=
  match ro, r with
  | after, after | before, before => read_back q do_
  | _, _ => 0
  end.

(** dq = scale * S do;  dS += scale * q do^T, at the state that was read. *)
Definition back x S dS_end do_ :=
  let g := step_back x S (dS_end + read_of after (query x) do_) in
  ((scale *: ((if ro is after then step x S else S) *m do_), g.1),
   g.2 + read_of before (query x) do_).

Lemma read_adjoint (q : 'cV[dual R]_K) (S : dual_state) do_ :
  inner do_ (slope (Dual scale 0 *: (S^T *m q)))
  = inner (scale *: (value S *m do_)) (slope q)
    + inner (read_back (value q) do_) (slope S).
Proof.
rewrite slope_scale innerZr slope_mul innerDr mulrDr addrC.
rewrite value_tr slope_tr inner_mulr trmxK innerZl; congr (_ + _).
by rewrite inner_mull -inner_trr trmx_mul !trmxK innerZl.
Qed.

Variables (value_of : X -> Y) (f : X -> dual_state -> dual_state).
Variables (dual_query : X -> 'cV[dual R]_K) (against : gradients -> X -> R).
Hypothesis values : forall x S, value (f x S) = step (value_of x) (value S).
Hypothesis queries : forall x, value (dual_query x) = query (value_of x).
Hypothesis one_step : forall x S dS,
  let g := step_back (value_of x) (value S) dS in
  inner dS (slope (f x S)) = against g.1 x + inner g.2 (slope S).

Definition against_read (g : 'cV[R]_K * gradients) x :=
  inner g.1 (slope (dual_query x)) + against g.2 x.

Lemma one_read x S dS do_ :
  let g := back (value_of x) (value S) dS do_ in
  inner do_ (slope (Dual scale 0 *:
    ((if ro is after then f x S else S)^T *m dual_query x)))
  + inner dS (slope (f x S))
  = against_read g.1 x + inner g.2 (slope S).
Proof.
rewrite read_adjoint queries /back /against_read /read_of /=.
case: (ro) => /=.
  rewrite addr0 -addrA [X in _ + X]addrC -innerDl one_step.
  by rewrite values addrA.
rewrite addr0 one_step innerDl.
by rewrite -!addrA; congr (_ + _); rewrite addrC -addrA.
Qed.

(** Outputs and final state of T tokens. *)
Theorem read_tokens x y S0 do_ T dS g0 : (forall t, value_of (x t) = y t) ->
  let walked := reverse_walk step back y (value S0) do_ T dS in
  \sum_(t < T) inner (do_ t) (slope (Dual scale 0 *:
     ((walk f x S0 (seen ro t))^T *m dual_query (x t))))
  + inner dS (slope (walk f x S0 T))
  = \sum_(t < T) against_read (nth g0 walked.1 t) (x t)
    + inner walked.2 (slope S0).
Proof.
move=> xy walked; rewrite -(all_tokens values one_read xy).
by congr (_ + _); apply: eq_bigr => t _; case: (ro).
Qed.

End Read.

(** The gradients of the pieces that steps are made of. *)
Section Pieces.
Variables (R : comRingType) (K V : nat).
Local Notation state_matrix := 'M[R]_(K, V).
Local Notation dual_state := 'M[dual R]_(K, V).

Lemma decay_adjoint (x : 'cV[dual R]_K) (z : 'cV[dual R]_V) (S : dual_state)
    (M : state_matrix) :
  inner M (slope (diag x *m S *m diag z))
  = inner (row_sums (M .* (value S *m diag (value z)))) (slope x)
    + inner (col_sums (M .* (diag (value x) *m value S))) (slope z)
    + inner (diag (value x) *m M *m diag (value z)) (slope S).
Proof.
rewrite !slope_mul !slope_diag !value_mul !value_diag mulmxDl !innerDr.
rewrite -(mulmxA (diag (slope x))) inner_diagl.
rewrite [X in _ + X = _](inner_diagr M).
rewrite (inner_mull M) diag_tr inner_mulr diag_tr mulmxA.
by rewrite -!addrA; congr (_ + _); exact: addrC.
Qed.

(** A read of a state X at an address r. *)
Lemma look_adjoint (X : dual_state) (r : 'cV[dual R]_K) (dc : 'cV[R]_V) :
  inner dc (slope (X^T *m r))
  = inner (value X *m dc) (slope r) + inner (value r *m dc^T) (slope X).
Proof.
rewrite slope_mul innerDr addrC value_tr slope_tr inner_mulr trmxK.
by rewrite inner_mull -[X in _ + X = _]inner_trr trmx_mul !trmxK.
Qed.

Lemma outer_adjoint (k : 'cV[dual R]_K) (u : 'cV[dual R]_V) (M : state_matrix) :
  inner M (slope (k *m u^T))
  = inner (M *m value u) (slope k) + inner (M^T *m value k) (slope u).
Proof.
rewrite slope_mul innerDr value_tr slope_tr inner_mull trmxK; congr (_ + _).
by rewrite inner_mulr -inner_trr trmx_mul !trmxK.
Qed.

Lemma times_adjoint m n (x y : 'M[dual R]_(m, n)) (z : 'M[R]_(m, n)) :
  inner z (slope (x .* y))
  = inner (z .* value y) (slope x) + inner (z .* value x) (slope y).
Proof.
rewrite slope_elementwise innerDr [slope x .* _]elementwiseC.
by rewrite !inner_elementwise.
Qed.

End Pieces.

(** Gates on either axis. *)
Section Token.
Variables (R : comRingType) (K V : nat).
Local Notation state_matrix := 'M[R]_(K, V).
Local Notation dual_token := (token (dual_comRingType R) K V).
Local Notation dual_state := 'M[dual R]_(K, V).

(** Cotangents of a token's inputs. *)
Record cotangents := Cotangents {
  c_k : 'cV[R]_K; c_a : 'cV[R]_K; c_b : 'cV[R]_K;
  c_v : 'cV[R]_V; c_d : 'cV[R]_V; c_e : 'cV[R]_V; c_w : 'cV[R]_V
}.

(** Line by line as in docs/mathematics.md. *)
Definition step_back (x : token R K V) (S dS : state_matrix) :=
  let D := decayed x S in
  let r := address x in
  let c := D^T *m r in
  let du := dS^T *m k x in
  let dc := - (du .* e x) in
  let dD := dS + r *m dc^T in
  let dr := D *m dc in
  (Cotangents
    (dS *m update x S + dr .* b x)
    (row_sums (dD .* (S *m diag (d x))))
    (dr .* k x)
    (du .* w x)
    (col_sums (dD .* (diag (a x) *m S)))
    (- (du .* c))
    (du .* v x),
   diag (a x) *m dD *m diag (d x)).

(** A token of dual numbers: its values; its slopes against cotangents. *)
Definition value_token (x : dual_token) : token R K V :=
  Token (value (q x)) (value (k x)) (value (a x)) (value (b x))
        (value (v x)) (value (d x)) (value (e x)) (value (w x)).
Definition against g (x : dual_token) :=
  inner (c_k g) (slope (k x))
  + inner (c_a g) (slope (a x)) + inner (c_b g) (slope (b x))
  + inner (c_v g) (slope (v x)) + inner (c_d g) (slope (d x))
  + inner (c_e g) (slope (e x)) + inner (c_w g) (slope (w x)).

Lemma value_decayed (x : dual_token) (S : dual_state) :
  value (decayed x S) = decayed (value_token x) (value S).
Proof. by rewrite /decayed !value_mul !value_diag. Qed.

Lemma value_address (x : dual_token) :
  value (address x) = address (value_token x).
Proof. exact: value_elementwise. Qed.

Lemma value_update (x : dual_token) (S : dual_state) :
  value (update x S) = update (value_token x) (value S).
Proof.
rewrite /update value_sub !value_elementwise value_mul value_tr.
by rewrite value_decayed value_address.
Qed.

Lemma value_step (x : dual_token) (S : dual_state) :
  value (step x S) = step (value_token x) (value S).
Proof.
by rewrite /step value_add value_decayed value_mul value_tr value_update.
Qed.

Let gather (A Bk Bw Bv Be Bc RD DD DR RB RK da dd dp : R) :
  DD = A + RD -> - Bc = DR + RD -> DR = RB + RK -> DD = da + dd + dp ->
  A + (Bk + (Bw + Bv - (Be + Bc)))
  = Bk + RK + da + RB + Bv + dd - Be + Bw + dp.
Proof.
move=> e1 e2 e3 e4; have -> : A = da + dd + dp - RD by rewrite -e4 e1 addrK.
have -> : Bc = - (RB + RK + RD) by rewrite -e3 -e2 opprK.
by ring.
Qed.

Lemma step_adjoint (x : dual_token) (S : dual_state) dS :
  let g := step_back (value_token x) (value S) dS in
  inner dS (slope (step x S)) = against g.1 x + inner g.2 (slope S).
Proof.
rewrite /against /step_back /=.
set D := decayed (value_token x) _; set r := address _.
set du := dS^T *m _; set dc := - _; set dD := dS + _.
rewrite /step slope_add innerDr outer_adjoint value_update.
rewrite {2}/update slope_sub innerBr !times_adjoint -/du.
rewrite value_mul value_tr value_decayed value_address -/r -/D.
rewrite (innerDl (dS *m _)) innerNl.
apply: (@gather _ _ _ _ _ _ (inner (r *m dc^T) (slope (decayed x S)))
  (inner dD (slope (decayed x S))) (inner (D *m dc) (slope (address x)))).
- by rewrite /dD innerDl.
- by rewrite -innerNl -/dc look_adjoint value_decayed value_address.
- by rewrite times_adjoint.
- by rewrite decay_adjoint.
Qed.

End Token.

Definition token_walk (R : comRingType) K V ro (scale : R) :=
  reverse_walk (@step R K V)
    (back ro scale (@step R K V) (@q R K V) (@step_back R K V)).
Definition against_token (R : comRingType) K V :=
  against_read (@q (dual_comRingType R) K V) (@against R K V).

(** GRAD-1: for every direction in the inputs of all tokens and in the start
    state, the cotangents of outputs and final state against the derivative of
    these are the reverse walk's gradients against the direction. *)
Theorem reverse_walk_is_gradient (R : comRingType) K V ro (scale : R)
    (X : nat -> token (dual_comRingType R) K V) (S0 : 'M[dual R]_(K, V))
    (do_ : nat -> 'cV[R]_V) (dS : 'M[R]_(K, V)) T g0 :
  let walked := token_walk ro scale (fun t => value_token (X t)) (value S0)
                           do_ T dS in
  \sum_(t < T) inner (do_ t) (slope (output ro (Dual scale 0) X S0 t))
  + inner dS (slope (state X S0 T))
  = \sum_(t < T) against_token (nth g0 walked.1 t) (X t)
    + inner walked.2 (slope S0).
Proof.
exact: (read_tokens ro scale (@value_step R K V) (fun x => erefl _)
  (@step_adjoint R K V)).
Qed.

(** GRAD-2, in the form that WY-1 over dual numbers gives: the derivative of
    the chunked form, against the same cotangents, is the same. *)
Theorem chunked_gradient (R : comRingType) K V ro (scale : R) lengths
    (X : nat -> token (dual_comRingType R) K V) (S0 : 'M[dual R]_(K, V))
    (do_ : nat -> 'cV[R]_V) (dS : 'M[R]_(K, V)) g0 :
  key_axis_erase X ->
  let T := sumn lengths in
  let walked := token_walk ro scale (fun t => value_token (X t)) (value S0)
                           do_ T dS in
  let found := chunked ro (Dual scale 0) lengths X S0 in
  \sum_(t < T) inner (do_ t) (slope (nth 0 found.1 t))
  + inner dS (slope found.2)
  = \sum_(t < T) against_token (nth g0 walked.1 t) (X t)
    + inner walked.2 (slope S0).
Proof.
move=> key_axis T walked found.
rewrite /found chunked_any_lengths // -reverse_walk_is_gradient.
by congr (_ + _); apply: eq_bigr => t _; rewrite nth_mkseq.
Qed.

(** The gradient of the log of a decay: row sums of dS~ * S~. *)
Theorem log_decay_gradient (R : comRingType) K V (x : token R K V) S dS i :
  let dc := - ((dS^T *m k x) .* e x) in
  let dD := dS + address x *m dc^T in
  a x i 0 * c_a (step_back x S dS).1 i 0 = \sum_j dD i j * decayed x S i j.
Proof.
move=> dc dD; rewrite /= mxE mulr_sumr; apply: eq_bigr => j _.
rewrite -/dc -/dD elementwiseE mul_diagE decayedE.
by move: (a x i 0) (dD i j) (S i j) (d x j 0) => t1 t2 t3 t4; ring.
Qed.

(** A full mask. *)
Section Mask.
Variables (R : comRingType) (K V : nat).
Local Notation state_matrix := 'M[R]_(K, V).
Local Notation dual_masked := (masked (dual_comRingType R) K V).
Local Notation dual_state := 'M[dual R]_(K, V).

Record mask_cotangents := MaskCotangents {
  m_k : 'cV[R]_K; m_a : 'cV[R]_K; m_E : 'M[R]_(K, V);
  m_v : 'cV[R]_V; m_d : 'cV[R]_V; m_w : 'cV[R]_V
}.

Definition mask_back (x : masked R K V) (S dS : state_matrix) :=
  let D := decayed x S in
  let du := dS^T *m k x in
  let dc := - du in
  let dD := dS + (k x *m dc^T) .* E x in
  (MaskCotangents
    (dS *m mask_update x S + (E x .* D) *m dc)
    (row_sums (dD .* (S *m diag (d x))))
    ((k x *m dc^T) .* D)
    (du .* w x)
    (col_sums (dD .* (diag (a x) *m S)))
    (du .* v x),
   diag (a x) *m dD *m diag (d x)).

Definition value_masked (x : dual_masked) : masked R K V :=
  Masked (value_token x) (value (E x)).
Definition mask_against g (x : dual_masked) :=
  inner (m_k g) (slope (k x)) + inner (m_a g) (slope (a x))
  + inner (m_E g) (slope (E x)) + inner (m_v g) (slope (v x))
  + inner (m_d g) (slope (d x)) + inner (m_w g) (slope (w x)).

Lemma value_mask_update (x : dual_masked) (S : dual_state) :
  value (mask_update x S) = mask_update (value_masked x) (value S).
Proof.
rewrite /mask_update value_sub value_elementwise value_mul value_tr.
by rewrite value_elementwise value_decayed.
Qed.

Lemma value_mask_step (x : dual_masked) (S : dual_state) :
  value (mask_step x S) = mask_step (value_masked x) (value S).
Proof.
by rewrite /mask_step value_add value_decayed value_mul value_tr
  value_mask_update.
Qed.

Let gather (A Bk Bw Bv Bc CK BE XD da dd dp : R) :
  A + XD = da + dd + dp -> - Bc = CK + (BE + XD) ->
  A + (Bk + (Bw + Bv - Bc)) = Bk + CK + da + BE + Bv + dd + Bw + dp.
Proof.
move=> e1 e2; have -> : A = da + dd + dp - XD by rewrite -e1 addrK.
have -> : Bc = - (CK + (BE + XD)) by rewrite -e2 opprK.
by ring.
Qed.

Lemma mask_step_adjoint (x : dual_masked) (S : dual_state) dS :
  let g := mask_back (value_masked x) (value S) dS in
  inner dS (slope (mask_step x S)) = mask_against g.1 x + inner g.2 (slope S).
Proof.
rewrite /mask_against /mask_back /=.
set D := decayed (value_token x) _; set du := dS^T *m _; set dc := - du.
set dD := dS + _.
rewrite /mask_step slope_add innerDr outer_adjoint value_mask_update.
rewrite {2}/mask_update slope_sub innerBr times_adjoint -/du.
rewrite (innerDl (dS *m _)).
apply: (@gather _ _ _ _ _ _ _ (inner ((value (k x) *m dc^T) .* value (E x))
                                      (slope (decayed x S)))).
  by rewrite -innerDl decay_adjoint.
rewrite -innerNl -/dc look_adjoint value_elementwise value_decayed.
by rewrite times_adjoint value_decayed.
Qed.

End Mask.

Definition mask_walk (R : comRingType) K V ro (scale : R) :=
  reverse_walk (@mask_step R K V)
    (back ro scale (@mask_step R K V) (fun x => q x) (@mask_back R K V)).
Definition against_masked (R : comRingType) K V :=
  against_read (fun x : masked (dual_comRingType R) K V => q x)
               (@mask_against R K V).

(** GRAD-1 for full masks. *)
Theorem mask_walk_is_gradient (R : comRingType) K V ro (scale : R)
    (X : nat -> masked (dual_comRingType R) K V) (S0 : 'M[dual R]_(K, V))
    (do_ : nat -> 'cV[R]_V) (dS : 'M[R]_(K, V)) T g0 :
  let walked := mask_walk ro scale (fun t => value_masked (X t)) (value S0)
                          do_ T dS in
  \sum_(t < T) inner (do_ t) (slope (mask_output ro (Dual scale 0) X S0 t))
  + inner dS (slope (mask_state X S0 T))
  = \sum_(t < T) against_masked (nth g0 walked.1 t) (X t)
    + inner walked.2 (slope S0).
Proof.
exact: (read_tokens ro scale (@value_mask_step R K V) (fun x => erefl _)
  (@mask_step_adjoint R K V)).
Qed.

(** And GRAD-2, column by column. *)
Theorem columnwise_gradient (R : comRingType) K V ro (scale : R) lengths
    (X : nat -> masked (dual_comRingType R) K V) (S0 : 'M[dual R]_(K, V))
    (do_ : nat -> 'cV[R]_V) (dS : 'M[R]_(K, V)) g0 :
  let T := sumn lengths in
  let walked := mask_walk ro scale (fun t => value_masked (X t)) (value S0)
                          do_ T dS in
  let found := columnwise ro (Dual scale 0) lengths X S0 in
  \sum_(t < T) inner (do_ t) (slope (nth 0 found.1 t))
  + inner dS (slope found.2)
  = \sum_(t < T) against_masked (nth g0 walked.1 t) (X t)
    + inner walked.2 (slope S0).
Proof.
move=> T walked found.
rewrite /found columnwise_is_recurrent -mask_walk_is_gradient.
by congr (_ + _); apply: eq_bigr => t _; rewrite nth_mkseq.
Qed.

(** The general step. *)
Section General.
Variables (R : comRingType) (K V : nat) (order : readout).
Local Notation state_matrix := 'M[R]_(K, V).
Local Notation dual_general := (general (dual_comRingType R) K V).
Local Notation dual_state := 'M[dual R]_(K, V).

Record general_cotangents := GeneralCotangents {
  g_k : 'cV[R]_K; g_a : 'cV[R]_K; g_r : 'cV[R]_K; g_y : 'cV[R]_K;
  g_v : 'cV[R]_V; g_d : 'cV[R]_V; g_e : 'cV[R]_V; g_w : 'cV[R]_V
}.

Definition general_back (x : general R K V) (S dS : state_matrix) :=
  let X := looked_up order x S in
  let c := X^T *m gr x in
  let dz := dS^T *m gk x in
  let dm := dS^T *m gy x in
  let dc := - (dm .* ge x) in
  let dX := gr x *m dc^T in
  let dD := if order is after then dS + dX else dS in
  (GeneralCotangents
    (dS *m (gw x .* gv x))
    (row_sums (dD .* (S *m diag (gd x))))
    (X *m dc)
    (- (dS *m (ge x .* c)))
    (dz .* gw x)
    (col_sums (dD .* (diag (ga x) *m S)))
    (- (dm .* c))
    (dz .* gv x),
   diag (ga x) *m dD *m diag (gd x) + if order is before then dX else 0).

Definition value_general (x : dual_general) : general R K V :=
  General (value (gq x)) (value (gk x)) (value (ga x)) (value (gr x))
    (value (gy x)) (value (gv x)) (value (gd x)) (value (ge x)) (value (gw x)).
Definition general_against g (x : dual_general) :=
  inner (g_k g) (slope (gk x)) + inner (g_a g) (slope (ga x))
  + inner (g_r g) (slope (gr x)) + inner (g_y g) (slope (gy x))
  + inner (g_v g) (slope (gv x)) + inner (g_d g) (slope (gd x))
  + inner (g_e g) (slope (ge x)) + inner (g_w g) (slope (gw x)).

Lemma value_general_decayed (x : dual_general) (S : dual_state) :
  value (general_decayed x S) = general_decayed (value_general x) (value S).
Proof. by rewrite /general_decayed !value_mul !value_diag. Qed.

Lemma value_looked_up (x : dual_general) (S : dual_state) :
  value (looked_up order x S) = looked_up order (value_general x) (value S).
Proof.
by rewrite /looked_up; case: order => //; exact: value_general_decayed.
Qed.

Lemma value_general_step (x : dual_general) (S : dual_state) :
  value (general_step order x S)
  = general_step order (value_general x) (value S).
Proof.
rewrite /general_step value_sub value_add value_general_decayed !value_mul.
by rewrite !value_tr !value_elementwise value_mul value_tr value_looked_up.
Qed.

Let gather (A Bk Bw Bv By Be Bc DR XR da dd P : R) :
  A + XR = da + dd + P -> - Bc = DR + XR ->
  A + (Bk + (Bw + Bv)) - (By + (Be + Bc))
  = Bk + da + DR - By + Bv + dd - Be + Bw + P.
Proof.
move=> e1 e2; have -> : A = da + dd + P - XR by rewrite -e1 addrK.
have -> : Bc = - (DR + XR) by rewrite -e2 opprK.
by ring.
Qed.

Lemma general_step_adjoint (x : dual_general) (S : dual_state) dS :
  let g := general_back (value_general x) (value S) dS in
  inner dS (slope (general_step order x S))
  = general_against g.1 x + inner g.2 (slope S).
Proof.
rewrite /general_against /general_back /=.
set X := looked_up order _ _; set dz := dS^T *m value (gk x).
set dm := dS^T *m _; set dc := - (dm .* _); set dX := _ *m dc^T.
rewrite /general_step slope_sub innerBr slope_add innerDr !outer_adjoint.
rewrite !times_adjoint !value_elementwise value_mul value_tr value_looked_up.
rewrite -/dz -/dm -/X !innerNl.
apply: (@gather _ _ _ _ _ _ _ _ (inner dX (slope (looked_up order x S))));
  last first.
  by rewrite -innerNl -/dc look_adjoint value_looked_up.
rewrite /looked_up; case: (order).
  by rewrite -innerDl decay_adjoint addr0.
by rewrite innerDl decay_adjoint addrA.
Qed.

(** Sub-steps: the reverse walk inside a token. *)
Definition multi_back n (x : nat -> general R K V) (S dS : state_matrix) :=
  reverse_walk (general_step order)
    (fun x S dS (_ : unit) => general_back x S dS) (substep x) S
    (fun=> tt) n dS.
Definition multi_against g0 n gs (x : nat -> dual_general) :=
  \sum_(i < n) general_against (nth g0 gs i) (substep x i).

Lemma value_substep (x : nat -> dual_general) i :
  value_general (substep x i) = substep (fun i => value_general (x i)) i.
Proof. by case: i => //= i; rewrite /value_general /= !value_ones. Qed.

Lemma value_multi_step n (x : nat -> dual_general) (S : dual_state) :
  value (multi_step order n x S)
  = multi_step order n (fun i => value_general (x i)) (value S).
Proof. exact: (value_walk value_general_step (value_substep x)). Qed.

Lemma multi_step_adjoint g0 n (x : nat -> dual_general) (S : dual_state) dS :
  let g := multi_back n (fun i => value_general (x i)) (value S) dS in
  inner dS (slope (multi_step order n x S))
  = multi_against g0 n g.1 x + inner g.2 (slope S).
Proof.
rewrite /multi_against /multi_back.
rewrite -(all_tokens value_general_step (heard := fun _ _ _ => 0) _
  (value_substep x)).
  by rewrite big1 // add0r.
by move=> x' S' dS' _; rewrite add0r; exact: general_step_adjoint.
Qed.

End General.

Definition multi_walk (R : comRingType) K V order ro (scale : R) n :=
  reverse_walk (@multi_step R K V order n)
    (back ro scale (@multi_step R K V order n) (fun x => gq (x 0%N))
          (@multi_back R K V order n)).
Definition against_multi (R : comRingType) K V g1 n :=
  against_read (fun x : nat -> general (dual_comRingType R) K V => gq (x 0%N))
               (@multi_against R K V g1 n).

(** GRAD-1 for the general step and its sub-steps; g0 and g1 fill the lists of
    gradients beyond their ends. *)
Theorem multi_walk_is_gradient (R : comRingType) K V order ro (scale : R) n
    (X : nat -> nat -> general (dual_comRingType R) K V)
    (S0 : 'M[dual R]_(K, V))
    (do_ : nat -> 'cV[R]_V) (dS : 'M[R]_(K, V)) T g0 g1 :
  let walked := multi_walk order ro scale n
    (fun t i => value_general (X t i)) (value S0) do_ T dS in
  \sum_(t < T) inner (do_ t)
    (slope (multi_output order ro (Dual scale 0) n X S0 t))
  + inner dS (slope (multi_state order n X S0 T))
  = \sum_(t < T) against_multi g1 n (nth g0 walked.1 t) (X t)
    + inner walked.2 (slope S0).
Proof.
exact: (read_tokens ro scale (@value_multi_step R K V order n)
  (fun x => erefl _) (@multi_step_adjoint R K V order g1 n)).
Qed.

(** WY-10, backward: the derivative of the chunked form. *)
Theorem multi_chunked_gradient (R : comRingType) K V order ro (scale : R) n
    lengths
    (X : nat -> nat -> general (dual_comRingType R) K V)
    (S0 : 'M[dual R]_(K, V))
    (do_ : nat -> 'cV[R]_V) (dS : 'M[R]_(K, V)) g0 g1 : (0 < n)%N ->
  (forall t i, ge (X t i) = ones) ->
  (order = before -> forall t, gd (X t 0%N) = ones) ->
  let T := sumn lengths in
  let walked := multi_walk order ro scale n
    (fun t i => value_general (X t i)) (value S0) do_ T dS in
  let found := multi_chunked order ro (Dual scale 0) n lengths X S0 in
  \sum_(t < T) inner (do_ t) (slope (nth 0 found.1 t))
  + inner dS (slope found.2)
  = \sum_(t < T) against_multi g1 n (nth g0 walked.1 t) (X t)
    + inner walked.2 (slope S0).
Proof.
move=> n0 key_axis before_needs T walked found.
rewrite /found multi_chunked_is_recurrent // -multi_walk_is_gradient.
by congr (_ + _); apply: eq_bigr => t _; rewrite nth_mkseq.
Qed.
