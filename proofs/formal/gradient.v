(** Is the reverse walk the derivative?  GRAD-1: over dual numbers R[eps],
    eps^2 = 0, whose eps part is the derivative by definition.  As R[eps] is a
    commutative ring, WY-1 holds over it too, so the chunked form has the same
    derivative (GRAD-2: its adjoint is the reverse walk's gradient). *)
From carve Require Import recurrence chunk column wy.

Section Dual.
Variable R : comRingType.

(** x + y eps *)
Record dual := Dual { re : R; du : R }.
Definition dual_pair x := (re x, du x).
Definition pair_dual (p : R * R) := Dual p.1 p.2.
Lemma dual_pairK : cancel dual_pair pair_dual. Proof. by case. Qed.
Definition dual_eqMixin := CanEqMixin dual_pairK.
Canonical dual_eqType := EqType dual dual_eqMixin.
Definition dual_choiceMixin := CanChoiceMixin dual_pairK.
Canonical dual_choiceType := ChoiceType dual dual_choiceMixin.

Definition dual_add x y := Dual (re x + re y) (du x + du y).
Definition dual_opp x := Dual (- re x) (- du x).
Definition dual_mul x y := Dual (re x * re y) (re x * du y + du x * re y).

Lemma dual_addA : associative dual_add.
Proof. by move=> [? ?] [? ?] [? ?]; rewrite /dual_add /= !addrA. Qed.
Lemma dual_addC : commutative dual_add.
Proof. by move=> [x dx] [y dy]; congr Dual; exact: addrC. Qed.
Lemma dual_add0 : left_id (Dual 0 0) dual_add.
Proof. by move=> [? ?]; rewrite /dual_add /= !add0r. Qed.
Lemma dual_addN : left_inverse (Dual 0 0) dual_opp dual_add.
Proof. by move=> [? ?]; rewrite /dual_add /= !addNr. Qed.
Definition dual_zmodMixin := ZmodMixin dual_addA dual_addC dual_add0 dual_addN.
Canonical dual_zmodType := ZmodType dual dual_zmodMixin.

Let three (x y z dx dy dz : R) :
  x * (y * dz + dy * z) + dx * (y * z) = x * y * dz + (x * dy + dx * y) * z.
Proof. by ring. Qed.
Let dist (x y z dx dy dz : R) :
  (x + y) * dz + (dx + dy) * z = x * dz + dx * z + (y * dz + dy * z).
Proof. by ring. Qed.
Lemma dual_mulA : associative dual_mul.
Proof. by move=> [x dx] [y dy] [z dz]; rewrite /dual_mul /= mulrA three. Qed.
Lemma dual_mulC : commutative dual_mul.
Proof.
move=> [x dx] [y dy]; rewrite /dual_mul /= (mulrC x y) addrC.
by rewrite (mulrC x dy) (mulrC dx y).
Qed.
Lemma dual_mul1 : left_id (Dual 1 0) dual_mul.
Proof. by move=> [x dx]; rewrite /dual_mul /= !mul1r mul0r addr0. Qed.
Lemma dual_mulD : left_distributive dual_mul dual_add.
Proof.
by move=> [x dx] [y dy] [z dz]; rewrite /dual_mul /dual_add /= mulrDl dist.
Qed.
Lemma dual_1_neq0 : Dual 1 0 != Dual 0 0.
Proof. by apply/eqP=> -[] /eqP; rewrite oner_eq0. Qed.
Definition dual_ringMixin :=
  ComRingMixin dual_mulA dual_mulC dual_mul1 dual_mulD dual_1_neq0.
Canonical dual_ringType := RingType dual dual_ringMixin.
Canonical dual_comRingType := ComRingType dual dual_mulC.

Lemma re_add x y : re (x + y) = re x + re y. Proof. by []. Qed.
Lemma du_add x y : du (x + y) = du x + du y. Proof. by []. Qed.
Lemma re_mul x y : re (x * y) = re x * re y. Proof. by []. Qed.
Lemma du_mul x y : du (x * y) = re x * du y + du x * re y. Proof. by []. Qed.
Lemma re_opp x : re (- x) = - re x. Proof. by []. Qed.
Lemma du_opp x : du (- x) = - du x. Proof. by []. Qed.
Lemma re_sum n (f : 'I_n -> dual) : re (\sum_i f i) = \sum_i re (f i).
Proof. by apply: (big_morph re re_add). Qed.
Lemma du_sum n (f : 'I_n -> dual) : du (\sum_i f i) = \sum_i du (f i).
Proof. by apply: (big_morph du du_add). Qed.

(** The two parts of a matrix. *)
Definition value m n (A : 'M[dual]_(m, n)) : 'M[R]_(m, n) := map_mx re A.
Definition slope m n (A : 'M[dual]_(m, n)) : 'M[R]_(m, n) := map_mx du A.

Definition inner m n (A B : 'M[R]_(m, n)) := \sum_i \sum_j A i j * B i j.

End Dual.

(** The algebra of one step, on bare functions. *)
Section Algebra.
Variables (R : comRingType) (K V : nat).
Implicit Types (f g : 'I_K -> 'I_V -> R) (x : 'I_K -> R) (y : 'I_V -> R).

Lemma by_columns f x y :
  \sum_i \sum_j f i j * (x i * y j) = \sum_j (\sum_i f i j * x i) * y j.
Proof.
rewrite exchange_big; apply: eq_bigr => j _; rewrite mulr_suml.
by apply: eq_bigr => i _; rewrite mulrA.
Qed.

Lemma by_rows f x y :
  \sum_i \sum_j f i j * (x i * y j) = \sum_i (\sum_j f i j * y j) * x i.
Proof.
apply: eq_bigr => i _; rewrite mulr_suml.
by apply: eq_bigr => j _; rewrite (mulrC (x i)) mulrA.
Qed.

Lemma sum2D f g : \sum_i \sum_j (f i j + g i j)
  = \sum_i \sum_j f i j + \sum_i \sum_j g i j.
Proof. by rewrite -big_split; apply: eq_bigr => i _; rewrite big_split. Qed.

Variables (k a b k' a' b' : 'I_K -> R) (v d e w v' d' e' w' : 'I_V -> R).
Variables (S S' dS : 'I_K -> 'I_V -> R).

Variables (D D' N' dD : 'I_K -> 'I_V -> R) (r r' dr : 'I_K -> R).
Variables (c c' u u' du dc : 'I_V -> R).
Hypotheses
  (D'E : forall i j,
     D' i j = (a i * d j) * S' i j + (a i * d' j + a' i * d j) * S i j)
  (r'E : forall i, r' i = b i * k' i + b' i * k i)
  (c'E : forall j, c' j = \sum_i (r i * D' i j + r' i * D i j))
  (u'E : forall j,
     u' j = w j * v' j + w' j * v j - (e j * c' j + e' j * c j))
  (N'E : forall i j, N' i j = D' i j + (k i * u' j + k' i * u j))
  (duE : forall j, du j = \sum_i dS i j * k i)
  (dcE : forall j, dc j = - (e j * du j))
  (dDE : forall i j, dD i j = dS i j + r i * dc j)
  (drE : forall i, dr i = \sum_j D i j * dc j).

Lemma adjoint_step :
  \sum_i \sum_j dS i j * N' i j =
  \sum_i (\sum_j dS i j * u j + dr i * b i) * k' i
  + \sum_i (\sum_j dD i j * (S i j * d j)) * a' i
  + \sum_i dr i * k i * b' i
  + \sum_j du j * w j * v' j + \sum_j (\sum_i dD i j * (a i * S i j)) * d' j
  + \sum_j - (du j * c j) * e' j + \sum_j du j * v j * w' j
  + \sum_i \sum_j a i * dD i j * d j * S' i j.
Proof.
have split_dS : \sum_i \sum_j dS i j * N' i j
    = \sum_i \sum_j dS i j * D' i j + \sum_j du j * u' j
      + \sum_i (\sum_j dS i j * u j) * k' i.
  under [X in _ + X + _]eq_bigr do rewrite duE.
  rewrite -by_columns -by_rows -addrA -!sum2D; apply: eq_bigr => i _.
  by apply: eq_bigr => j _; rewrite -!mulrDr N'E.
have split_u : \sum_j du j * u' j
    = \sum_j du j * w j * v' j + \sum_j du j * v j * w' j
      + \sum_j - (du j * c j) * e' j + \sum_j dc j * c' j.
  rewrite -!big_split; apply: eq_bigr => j _ /=; rewrite u'E dcE.
  by move: (du j) (c j) (c' j) => t1 t2 t3; ring.
have split_c : \sum_j dc j * c' j
    = \sum_i \sum_j r i * dc j * D' i j + \sum_i dr i * r' i.
  transitivity (\sum_i \sum_j (r i * dc j * D' i j + dc j * (r' i * D i j))).
    rewrite exchange_big; apply: eq_bigr => j _; rewrite c'E mulr_sumr.
    apply: eq_bigr => i _; rewrite mulrDr mulrA; congr (_ * _ + _).
    exact: mulrC.
  rewrite sum2D; congr (_ + _); apply: eq_bigr => i _; rewrite drE mulr_suml.
  by apply: eq_bigr => j _; rewrite mulrCA mulrC (mulrC (dc j)).
have split_r : \sum_i dr i * r' i
    = \sum_i dr i * k i * b' i + \sum_i dr i * b i * k' i.
  rewrite -big_split; apply: eq_bigr => i _ /=; rewrite r'E.
  by move: (dr i) => t; ring.
have split_D : \sum_i \sum_j dD i j * D' i j
    = \sum_i (\sum_j dD i j * (S i j * d j)) * a' i
      + \sum_j (\sum_i dD i j * (a i * S i j)) * d' j
      + \sum_i \sum_j a i * dD i j * d j * S' i j.
  transitivity (\sum_i \sum_j (dD i j * (S i j * d j) * a' i
      + dD i j * (a i * S i j) * d' j + a i * dD i j * d j * S' i j)).
    apply: eq_bigr => i _; apply: eq_bigr => j _; rewrite D'E.
    by move: (dD i j) (S i j) (S' i j) => t1 t2 t3; ring.
  rewrite !sum2D; congr (_ + _ + _).
    by apply: eq_bigr => i _; rewrite mulr_suml.
  by rewrite exchange_big; apply: eq_bigr => j _; rewrite mulr_suml.
have join_D : \sum_i \sum_j dD i j * D' i j
    = \sum_i \sum_j dS i j * D' i j + \sum_i \sum_j r i * dc j * D' i j.
  by rewrite -sum2D; apply: eq_bigr => i _; apply: eq_bigr => j _;
    rewrite -mulrDl dDE.
have join_k : \sum_i (\sum_j dS i j * u j + dr i * b i) * k' i
    = \sum_i (\sum_j dS i j * u j) * k' i + \sum_i dr i * b i * k' i.
  by rewrite -big_split; apply: eq_bigr => i _; rewrite mulrDl.
rewrite split_dS split_u split_c split_r join_k.
move: split_D; rewrite join_D => split_D.
have {}split_D : \sum_i \sum_j dS i j * D' i j =
    \sum_i (\sum_j dD i j * (S i j * d j)) * a' i
      + \sum_j (\sum_i dD i j * (a i * S i j)) * d' j
      + \sum_i \sum_j a i * dD i j * d j * S' i j
      - \sum_i \sum_j r i * dc j * D' i j by rewrite -split_D addrK.
rewrite split_D.
move: (\sum_i \sum_j r i * dc j * D' i j)
  (\sum_i \sum_j a i * dD i j * d j * S' i j)
  (\sum_i (\sum_j dD i j * (S i j * d j)) * a' i)
  (\sum_j (\sum_i dD i j * (a i * S i j)) * d' j)
  (\sum_j du j * w j * v' j) (\sum_j du j * v j * w' j)
  (\sum_j - (du j * c j) * e' j) (\sum_i dr i * k i * b' i)
  (\sum_i dr i * b i * k' i) (\sum_i (\sum_j dS i j * u j) * k' i).
move=> t1 t2 t3 t4 t5 t6 t7 t8 t9 t10; ring.
Qed.

End Algebra.

Section Walk.
Variables (R : comRingType) (K V : nat) (ro : readout) (scale : R).
Local Notation state_matrix := 'M[R]_(K, V).

(** The cotangents of one token's inputs, and of the state before it. *)
Record cotangents := Cotangents {
  c_q : 'cV[R]_K; c_k : 'cV[R]_K; c_a : 'cV[R]_K; c_b : 'cV[R]_K;
  c_v : 'cV[R]_V; c_d : 'cV[R]_V; c_e : 'cV[R]_V; c_w : 'cV[R]_V;
  c_S : state_matrix
}.

(** The reverse walk, one token: from the cotangents of its output and of the
    state after it. *)
Definition back (x : token R K V) (S dS_end : state_matrix) (do_ : 'cV[R]_V) :=
  let dS := if ro is after then dS_end + scale *: (q x *m do_^T) else dS_end in
  let D := decayed x S in
  let r := address x in
  let c := D^T *m r in
  let du := dS^T *m k x in
  let dc := - (e x .* du) in
  let dD := dS + r *m dc^T in
  let dr := D *m dc in
  Cotangents
    (scale *: ((if ro is after then step x S else S) *m do_))
    (dS *m update x S + dr .* b x)
    (\col_i \sum_j dD i j * (S i j * d x j 0))
    (dr .* k x)
    (du .* w x)
    (\col_j \sum_i dD i j * (a x i 0 * S i j))
    (- (du .* c))
    (du .* v x)
    (diag (a x) *m dD *m diag (d x)
     + if ro is before then scale *: (q x *m do_^T) else 0).

(** All tokens, last to first, and the cotangent of the start state. *)
Fixpoint reverse_walk x S0 do_ T dS : seq cotangents * state_matrix :=
  if T is t.+1 then
    let g := back (x t) (state x S0 t) dS (do_ t) in
    let earlier := reverse_walk x S0 do_ t (c_S g) in
    (rcons earlier.1 g, earlier.2)
  else ([::], dS).

(** A token of dual numbers: its values; its slopes against cotangents. *)
Definition value_token (X : token [comRingType of dual R] K V) : token R K V :=
  Token (value (q X)) (value (k X)) (value (a X)) (value (b X))
        (value (v X)) (value (d X)) (value (e X)) (value (w X)).
Definition against g (X : token [comRingType of dual R] K V) :=
  inner (c_q g) (slope (q X)) + inner (c_k g) (slope (k X))
  + inner (c_a g) (slope (a X)) + inner (c_b g) (slope (b X))
  + inner (c_v g) (slope (v X)) + inner (c_d g) (slope (d X))
  + inner (c_e g) (slope (e X)) + inner (c_w g) (slope (w X)).

Lemma inner_col n (x y : 'cV[R]_n) : inner x y = \sum_i x i 0 * y i 0.
Proof. by apply: eq_bigr => i _; rewrite big_ord1. Qed.

Lemma innerD m n (A B M : 'M[R]_(m, n)) :
  inner (A + B) M = inner A M + inner B M.
Proof.
rewrite /inner -sum2D; apply: eq_bigr => i _; apply: eq_bigr => j _.
by rewrite addE mulrDl.
Qed.

Section Step.
Variables (X : token [comRingType of dual R] K V).
Variables (S : 'M[dual R]_(K, V)).
Local Notation x := (value_token X).
Local Notation s := (value S).

Lemma valueE m n (A : 'M[dual R]_(m, n)) i j : value A i j = re (A i j).
Proof. by rewrite mxE. Qed.
Lemma slopeE m n (A : 'M[dual R]_(m, n)) i j : slope A i j = du (A i j).
Proof. by rewrite mxE. Qed.

Lemma re_decayed i j : re (decayed X S i j) = decayed x s i j.
Proof. by rewrite !decayedE !valueE. Qed.

Lemma re_address i : re (address X i 0) = address x i 0.
Proof. by rewrite !elementwiseE !valueE. Qed.

Lemma re_update j : re (update X S j 0) = update x s j 0.
Proof.
rewrite !updateE !valueE re_add re_opp !re_mul re_sum.
congr (_ - _ * _); apply: eq_bigr => i _.
by rewrite re_mul re_address re_decayed.
Qed.

Lemma value_step : value (step X S) = step x s.
Proof.
apply/matrixP=> i j; rewrite valueE !stepE re_add !re_mul re_update.
by rewrite !valueE.
Qed.

Lemma du_decayed i j : du (decayed X S i j) =
  (a x i 0 * d x j 0) * slope S i j
  + (a x i 0 * slope (d X) j 0 + slope (a X) i 0 * d x j 0) * s i j.
Proof. by rewrite decayedE !du_mul !re_mul !slopeE !valueE. Qed.

Lemma du_address i : du (address X i 0) =
  b x i 0 * slope (k X) i 0 + slope (b X) i 0 * k x i 0.
Proof. by rewrite elementwiseE du_mul !slopeE !valueE. Qed.

Lemma step_adjoint (dS : state_matrix) :
  let D := decayed x s in
  let r := address x in
  let c := D^T *m r in
  let du_ := dS^T *m k x in
  let dc := - (e x .* du_) in
  let dD := dS + r *m dc^T in
  let dr := D *m dc in
  inner dS (slope (step X S)) =
  \sum_i (dS *m update x s + dr .* b x) i 0 * slope (k X) i 0
  + \sum_i (\sum_j dD i j * (s i j * d x j 0)) * slope (a X) i 0
  + \sum_i (dr .* k x) i 0 * slope (b X) i 0
  + \sum_j (du_ .* w x) j 0 * slope (v X) j 0
  + \sum_j (\sum_i dD i j * (a x i 0 * s i j)) * slope (d X) j 0
  + \sum_j (- (du_ .* c)) j 0 * slope (e X) j 0
  + \sum_j (du_ .* v x) j 0 * slope (w X) j 0
  + \sum_i \sum_j (diag (a x) *m dD *m diag (d x)) i j * slope S i j.
Proof.
move=> D r c du_ dc dD dr.
have cE j : c j 0 = \sum_i r i 0 * D i j by rewrite tr_mulE.
have duE j : du_ j 0 = \sum_i dS i j * k x i 0.
  by rewrite tr_mulE; apply: eq_bigr => i _; rewrite mulrC.
have dcE j : dc j 0 = - (e x j 0 * du_ j 0).
  by rewrite /dc [LHS]mxE elementwiseE.
have dDE i j : dD i j = dS i j + r i 0 * dc j 0.
  by rewrite /dD addE outerE.
have drE i : dr i 0 = \sum_j D i j * dc j 0 by rewrite /dr mulE.
pose c' j := \sum_i (r i 0 * du (decayed X S i j) + du (address X i 0) * D i j).
have u'E j : du (update X S j 0) =
    w x j 0 * slope (v X) j 0 + slope (w X) j 0 * v x j 0
    - (e x j 0 * c' j + slope (e X) j 0 * c j 0).
  rewrite updateE du_add du_opp !du_mul du_sum re_sum !slopeE !valueE.
  congr (_ - (_ * _ + _ * _)); rewrite ?cE; apply: eq_bigr => i _.
    by rewrite du_mul re_address re_decayed.
  by rewrite re_mul re_address re_decayed.
have N'E i j : slope (step X S) i j = du (decayed X S i j)
    + (k x i 0 * du (update X S j 0) + slope (k X) i 0 * update x s j 0).
  rewrite slopeE stepE -decayedE du_add du_mul re_update.
  by rewrite valueE slopeE.
rewrite /inner (adjoint_step (fun i j => du_decayed i j) du_address
  (fun j => erefl (c' j)) u'E N'E duE dcE dDE drE).
congr (_ + _ + _ + _ + _ + _ + _ + _); apply: eq_bigr => i _.
- congr (_ * _); rewrite [RHS]addE [X in _ = X + _]mulE.
  by rewrite [X in _ = _ + X]elementwiseE.
- by rewrite [in RHS]elementwiseE.
- by rewrite [in RHS]elementwiseE.
- by congr (_ * _); rewrite [RHS]mxE [X in _ = - X]elementwiseE.
- by rewrite [in RHS]elementwiseE.
- by apply: eq_bigr => j _; rewrite mul_diagE diag_mulE.
Qed.

(** One token: what the cotangents of its output and of the state after it
    make of the slopes of its inputs. *)
Lemma read_adjoint (do_ : 'cV[R]_V) (M : 'M[dual R]_(K, V)) :
  inner do_ (slope (read (Dual scale 0) X M)) =
  inner (scale *: (value M *m do_)) (slope (q X))
  + inner (scale *: (q x *m do_^T)) (slope M).
Proof.
rewrite !inner_col /inner.
under eq_bigr do rewrite slopeE readE du_mul mul0r addr0 du_sum mulr_sumr
  mulr_sumr.
rewrite exchange_big -big_split; apply: eq_bigr => i _ /=.
rewrite scaleE [in RHS]mulE mulr_sumr mulr_suml -big_split.
apply: eq_bigr => j _ /=; rewrite scaleE outerE !slopeE !valueE.
by move: (do_ j 0) (re (q X i 0)) (du (q X i 0)) (re (M i j)) (du (M i j));
  move=> t1 t2 t3 t4 t5; ring.
Qed.

Lemma back_adjoint (dS_end : state_matrix) (do_ : 'cV[R]_V) :
  let g := back x s dS_end do_ in
  inner do_ (slope (read (Dual scale 0) X (if ro is after then step X S else S)))
  + inner dS_end (slope (step X S))
  = against g X + inner (c_S g) (slope S).
Proof.
move=> g; pose dS := if ro is after then dS_end + scale *: (q x *m do_^T)
                     else dS_end.
pose from_state := diag (a x) *m (dS + address x *m
  (- (e x .* (dS^T *m k x)))^T) *m diag (d x).
have E : inner dS (slope (step X S)) =
    inner (c_k g) (slope (k X)) + inner (c_a g) (slope (a X))
    + inner (c_b g) (slope (b X)) + inner (c_v g) (slope (v X))
    + inner (c_d g) (slope (d X)) + inner (c_e g) (slope (e X))
    + inner (c_w g) (slope (w X)) + inner from_state (slope S).
  rewrite step_adjoint !inner_col.
  congr (_ + _ + _ + _ + _ + _ + _ + _); apply: eq_bigr => i _.
    by congr (_ * _); rewrite [RHS]mxE.
  by congr (_ * _); rewrite [RHS]mxE.
rewrite read_adjoint /against.
have gS : c_S g = from_state
    + if ro is before then scale *: (q x *m do_^T) else 0 by [].
have gq : c_q g = scale *: ((if ro is after then step x s else s) *m do_) by [].
rewrite gS gq; move: E; rewrite /dS; case: (ro) => E.
  rewrite value_step (addr0 from_state) -addrA [X in _ + X]addrC -innerD E.
  by rewrite !addrA.
rewrite (innerD from_state) E !addrA.
move: (inner (scale *: (q x *m do_^T)) (slope S)) => t.
by rewrite -!addrA [t + _]addrC -!addrA.
Qed.

End Step.

Lemma reverse_walk_size x S0 do_ T dS :
  size (reverse_walk x S0 do_ T dS).1 = T.
Proof. by elim: T dS => //= t IH dS; rewrite size_rcons IH. Qed.

(** GRAD-1: for every direction in the inputs of all tokens and in the start
    state, the cotangents of outputs and final state against the derivative of
    these are the reverse walk's gradients against the direction. *)
Theorem reverse_walk_is_gradient (X : nat -> token [comRingType of dual R] K V)
    (S0 : 'M[dual R]_(K, V)) (do_ : nat -> 'cV[R]_V) (dS : state_matrix) T :
  let walked := reverse_walk (fun t => value_token (X t)) (value S0) do_ T dS in
  \sum_(t < T) inner (do_ t) (slope (output ro (Dual scale 0) X S0 t))
  + inner dS (slope (state X S0 T))
  = \sum_(t < T) against (nth (back (value_token (X 0%N)) 0 0 0) walked.1 t) (X t)
    + inner walked.2 (slope S0).
Proof.
have values t : value (state X S0 t)
    = state (fun t => value_token (X t)) (value S0) t.
  by elim: t => // t IH; rewrite /state /= -!/(state _ _ t) value_step IH.
elim: T dS => [|T IH] dS; first by rewrite /= !big_ord0.
rewrite big_ord_recr /= -addrA.
have := back_adjoint (X T) (state X S0 T) dS (do_ T).
have -> : (if ro is after then step (X T) (state X S0 T) else state X S0 T)
    = state X S0 (seen ro T) by case: (ro).
rewrite -/(output ro (Dual scale 0) X S0 T) -/(state X S0 T.+1) /= => ->.
rewrite values; set g := back _ _ _ _; rewrite addrCA IH.
set earlier := reverse_walk _ _ _ _ _.
have size_e : size earlier.1 = T by exact: reverse_walk_size.
rewrite big_ord_recr /= nth_rcons size_e ltnn eqxx addrA; congr (_ + _).
rewrite addrC; congr (_ + _); apply: eq_bigr => t _.
by rewrite nth_rcons size_e ltn_ord.
Qed.

(** The gradient of the log of a decay: row sums of dS~ * S~. *)
Theorem log_decay_gradient (x : token R K V) S dS_end do_ i :
  let dS := if ro is after then dS_end + scale *: (q x *m do_^T) else dS_end in
  let dD := dS + address x *m (- (e x .* (dS^T *m k x)))^T in
  a x i 0 * c_a (back x S dS_end do_) i 0 = \sum_j dD i j * decayed x S i j.
Proof.
move=> dS dD; rewrite [c_a _ i 0]mxE mulr_sumr; apply: eq_bigr => j _.
rewrite -/dS -/dD decayedE.
by move: (a x i 0) (dD i j) (S i j) (d x j 0) => t1 t2 t3 t4; ring.
Qed.

(** GRAD-2, in the form that WY-1 over dual numbers gives: the derivative of
    the chunked form, against the same cotangents, is the same. *)
Theorem chunked_gradient lengths (X : nat -> token [comRingType of dual R] K V)
    (S0 : 'M[dual R]_(K, V)) (do_ : nat -> 'cV[R]_V) (dS : state_matrix) :
  key_axis_erase X ->
  let T := sumn lengths in
  let walked := reverse_walk (fun t => value_token (X t)) (value S0) do_ T dS in
  let found := chunked ro (Dual scale 0) lengths X S0 in
  \sum_(t < T) inner (do_ t) (slope (nth 0 found.1 t))
  + inner dS (slope found.2)
  = \sum_(t < T) against (nth (back (value_token (X 0%N)) 0 0 0) walked.1 t) (X t)
    + inner walked.2 (slope S0).
Proof.
move=> key_axis T walked found.
rewrite /found chunked_any_lengths // -reverse_walk_is_gradient.
by congr (_ + _); apply: eq_bigr => t _; rewrite nth_mkseq.
Qed.

End Walk.
