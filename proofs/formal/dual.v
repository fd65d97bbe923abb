(** What are derivatives over a commutative ring?  Dual numbers R[eps], where
    eps^2 = 0: the eps part is the derivative by definition.  As R[eps] is a
    commutative ring, what holds over any ring holds of derivatives.  And the
    calculus that turns a derivative into the gradient of each factor. *)
From carve Require Import recurrence chunk column.

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

End Dual.

(** The two parts of a matrix, and the pairing of cotangents with slopes. *)
Definition value (R : comRingType) m n (A : 'M[dual R]_(m, n)) : 'M[R]_(m, n) :=
  map_mx (@re R) A.
Definition slope (R : comRingType) m n (A : 'M[dual R]_(m, n)) : 'M[R]_(m, n) :=
  map_mx (@du R) A.
Definition inner (R : comRingType) m n (A B : 'M[R]_(m, n)) :=
  \sum_i \sum_j A i j * B i j.

Section Calculus.
Variable R : comRingType.
Implicit Types m n p : nat.
Local Notation dual_matrix := (fun m n => 'M[dual R]_(m, n)).

Lemma valueE m n (A : dual_matrix m n) i j : value A i j = re (A i j).
Proof. by rewrite mxE. Qed.
Lemma slopeE m n (A : dual_matrix m n) i j : slope A i j = du (A i j).
Proof. by rewrite mxE. Qed.

Lemma value_add m n (A B : dual_matrix m n) : value (A + B) = value A + value B.
Proof. by apply/matrixP=> i j; rewrite !mxE. Qed.
Lemma slope_add m n (A B : dual_matrix m n) : slope (A + B) = slope A + slope B.
Proof. by apply/matrixP=> i j; rewrite !mxE. Qed.
Lemma value_sub m n (A B : dual_matrix m n) : value (A - B) = value A - value B.
Proof. by apply/matrixP=> i j; rewrite !mxE. Qed.
Lemma slope_sub m n (A B : dual_matrix m n) : slope (A - B) = slope A - slope B.
Proof. by apply/matrixP=> i j; rewrite !mxE. Qed.
Lemma value_tr m n (A : dual_matrix m n) : value A^T = (value A)^T.
Proof. by apply/matrixP=> i j; rewrite !mxE. Qed.
Lemma slope_tr m n (A : dual_matrix m n) : slope A^T = (slope A)^T.
Proof. by apply/matrixP=> i j; rewrite !mxE. Qed.
Lemma value_mul m n p (A : dual_matrix m n) (B : dual_matrix n p) :
  value (A *m B) = value A *m value B.
Proof.
apply/matrixP=> i j; rewrite valueE !mulE re_sum.
by apply: eq_bigr => l _; rewrite !valueE.
Qed.
Lemma slope_mul m n p (A : dual_matrix m n) (B : dual_matrix n p) :
  slope (A *m B) = slope A *m value B + value A *m slope B.
Proof.
apply/matrixP=> i j; rewrite slopeE addE !mulE du_sum -big_split.
by apply: eq_bigr => l _; rewrite !valueE !slopeE du_mul addrC.
Qed.
Lemma value_elementwise m n (A B : dual_matrix m n) :
  value (A .* B) = value A .* value B.
Proof. by apply/matrixP=> i j; rewrite !mxE. Qed.
Lemma slope_elementwise m n (A B : dual_matrix m n) :
  slope (A .* B) = slope A .* value B + value A .* slope B.
Proof.
by apply/matrixP=> i j; rewrite slopeE addE !elementwiseE du_mul !mxE addrC.
Qed.
Lemma value_ones m n : value (ones : dual_matrix m n) = ones.
Proof. by apply/matrixP=> i j; rewrite !mxE. Qed.
Lemma slope_ones m n : slope (ones : dual_matrix m n) = 0.
Proof. by apply/matrixP=> i j; rewrite !mxE. Qed.
Lemma value_scale m n c (A : dual_matrix m n) :
  value (Dual c 0 *: A) = c *: value A.
Proof. by apply/matrixP=> i j; rewrite !mxE. Qed.
Lemma slope_scale m n c (A : dual_matrix m n) :
  slope (Dual c 0 *: A) = c *: slope A.
Proof. by apply/matrixP=> i j; rewrite !mxE du_mul /= mul0r addr0. Qed.

Lemma inner_tr m n (A B : 'M[R]_(m, n)) : inner A B = \tr (A *m B^T).
Proof.
by apply: eq_bigr => i _; rewrite mxE; apply: eq_bigr => j _; rewrite mxE.
Qed.
Lemma innerC m n (A B : 'M[R]_(m, n)) : inner A B = inner B A.
Proof. by apply: eq_bigr => i _; apply: eq_bigr => j _; exact: mulrC. Qed.
Lemma innerDl m n (A B M : 'M[R]_(m, n)) :
  inner (A + B) M = inner A M + inner B M.
Proof. by rewrite !inner_tr mulmxDl raddfD. Qed.
Lemma innerDr m n (A B M : 'M[R]_(m, n)) :
  inner M (A + B) = inner M A + inner M B.
Proof. by rewrite !(innerC M) innerDl. Qed.
Lemma innerNl m n (A B : 'M[R]_(m, n)) : inner (- A) B = - inner A B.
Proof. by rewrite !inner_tr mulNmx raddfN. Qed.
Lemma innerNr m n (A B : 'M[R]_(m, n)) : inner A (- B) = - inner A B.
Proof. by rewrite !(innerC A) innerNl. Qed.
Lemma innerBr m n (A B M : 'M[R]_(m, n)) :
  inner M (A - B) = inner M A - inner M B.
Proof. by rewrite innerDr innerNr. Qed.
Lemma inner0l m n (A : 'M[R]_(m, n)) : inner 0 A = 0.
Proof. by rewrite inner_tr mul0mx raddf0. Qed.
Lemma inner0r m n (A : 'M[R]_(m, n)) : inner A 0 = 0.
Proof. by rewrite innerC inner0l. Qed.
Lemma innerZl m n c (A B : 'M[R]_(m, n)) : inner (c *: A) B = c * inner A B.
Proof. by rewrite !inner_tr -scalemxAl linearZ. Qed.
Lemma innerZr m n c (A B : 'M[R]_(m, n)) : inner A (c *: B) = c * inner A B.
Proof. by rewrite !(innerC A) innerZl. Qed.

(** The gradient of a factor. *)
Lemma inner_mull m n p (A : 'M[R]_(m, p)) (B : 'M[R]_(m, n))
    (M : 'M[R]_(n, p)) :
  inner A (B *m M) = inner (A *m M^T) B.
Proof. by rewrite !inner_tr trmx_mul mulmxA. Qed.
Lemma inner_trr m n (A B : 'M[R]_(m, n)) : inner A^T B^T = inner A B.
Proof. by rewrite !inner_tr trmxK mxtrace_mulC -mxtrace_tr trmx_mul trmxK. Qed.
Lemma inner_mulr m n p (A : 'M[R]_(m, p)) (B : 'M[R]_(m, n))
    (M : 'M[R]_(n, p)) :
  inner A (B *m M) = inner (B^T *m A) M.
Proof.
by rewrite -inner_trr trmx_mul inner_mull trmxK -inner_trr trmx_mul !trmxK.
Qed.
Lemma inner_elementwise m n (A B M : 'M[R]_(m, n)) :
  inner A (B .* M) = inner (A .* B) M.
Proof.
by apply: eq_bigr => i _; apply: eq_bigr => j _; rewrite !elementwiseE mulrA.
Qed.

Lemma value_diag n (x : 'cV[dual R]_n) : value (diag x) = diag (value x).
Proof.
apply/matrixP=> i j; rewrite !mxE; case: (i == j); by rewrite ?mulr1n ?mulr0n.
Qed.
Lemma slope_diag n (x : 'cV[dual R]_n) : slope (diag x) = diag (slope x).
Proof.
apply/matrixP=> i j; rewrite !mxE; case: (i == j); by rewrite ?mulr1n ?mulr0n.
Qed.

Definition row_sums m n (A : 'M[R]_(m, n)) : 'cV[R]_m := \col_i \sum_j A i j.
Definition col_sums m n (A : 'M[R]_(m, n)) : 'cV[R]_n := \col_j \sum_i A i j.

Lemma inner_diagl m n (A B : 'M[R]_(m, n)) x :
  inner A (diag x *m B) = inner (row_sums (A .* B)) x.
Proof.
apply: eq_bigr => i _; rewrite big_ord1 mxE mulr_suml; apply: eq_bigr => j _.
by rewrite diag_mulE elementwiseE mulrCA mulrC.
Qed.
Lemma inner_diagr m n (A B : 'M[R]_(m, n)) x :
  inner A (B *m diag x) = inner (col_sums (A .* B)) x.
Proof.
rewrite /inner exchange_big; apply: eq_bigr => j _.
rewrite big_ord1 mxE mulr_suml; apply: eq_bigr => i _.
by rewrite mul_diagE elementwiseE mulrA.
Qed.
Lemma diag_tr n (x : 'cV[R]_n) : (diag x)^T = diag x.
Proof. by rewrite /diag tr_diag_mx. Qed.

(** Gradients are unique. *)
Lemma inner_inj m n (A B : 'M[R]_(m, n)) :
  (forall M, inner A M = inner B M) -> A = B.
Proof.
move=> H; apply/matrixP=> i j; have := H (delta_mx i j).
have E M : inner M (delta_mx i j) = M i j :> R.
  rewrite /inner (bigD1 i) //= (bigD1 j) //= !mxE !eqxx mulr1 !big1 ?addr0 //.
    move=> l /negPf il; rewrite big1 // => o _; by rewrite mxE il mulr0.
  by move=> l /negPf jl; rewrite mxE jl andbF mulr0.
by rewrite !E.
Qed.

End Calculus.
