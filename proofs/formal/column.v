(** What do the chunked forms rest on?  The state of a chunk unrolled, and unit
    lower triangular systems over a commutative ring. *)
From carve Require Import recurrence chunk.

Section Ratio.
Variables (R : comRingType) (n : nat) (f : nat -> 'cV[R]_n).

Lemma ratioE s t i : ratio f s t i 0 = \prod_(s <= l < t) f l i 0.
Proof. by rewrite mxE. Qed.

Lemma ratio_same t i : ratio f t t i 0 = 1.
Proof. by rewrite ratioE big_geq. Qed.

Lemma ratio_cat s l t i : (s <= l <= t)%N ->
  ratio f s l i 0 * ratio f l t i 0 = ratio f s t i 0.
Proof.
by case/andP=> sl lt; rewrite !ratioE -big_cat_nat.
Qed.

Lemma ratio_recr s t i : (s <= t)%N ->
  ratio f s t.+1 i 0 = f t i 0 * ratio f s t i 0.
Proof. by move=> st; rewrite !ratioE big_nat_recr //= mulrC. Qed.

Lemma ratio_ones s t i : (forall l, f l = ones) -> ratio f s t i 0 = 1.
Proof. by move=> H; rewrite ratioE big1 // => l _; rewrite H mxE. Qed.

End Ratio.

Lemma ratio_from (R : comRingType) n (f : nat -> 'cV[R]_n) m s t :
  ratio (from m f) s t = ratio f (m + s) (m + t).
Proof.
apply/colP=> i; rewrite !mxE (addnC m s) big_addn (addnC m t) addnK.
by apply: eq_bigr => l _; rewrite /from addnC.
Qed.

Section Unroll.
(** One channel of a state that decays and takes in z. *)
Variables (R : comRingType) (f z s : nat -> R).
Hypothesis step_s : forall t, s t.+1 = f t * s t + z t.
Local Notation between m n := (\prod_(m <= l < n) f l).

Lemma unroll t :
  s t = between 0 t * s 0%N + \sum_(l < t) between l.+1 t * z l.
Proof.
elim: t => [|t IH]; first by rewrite big_ord0 big_geq // mul1r addr0.
rewrite step_s IH big_nat_recr //= big_ord_recr /= (big_geq (leqnn t.+1)) mul1r.
rewrite mulrDr mulr_sumr -addrA; congr (_ + (_ + _)); first by ring.
apply: eq_bigr => l _; rewrite big_nat_recr //=; ring.
Qed.

Lemma unroll_decayed t :
  f t * s t = between 0 t.+1 * s 0%N + \sum_(l < t) between l.+1 t.+1 * z l.
Proof.
rewrite unroll mulrDr mulr_sumr big_nat_recr //=; congr (_ + _); first by ring.
apply: eq_bigr => l _; rewrite big_nat_recr //=; ring.
Qed.

End Unroll.

Section Triangular.
Variables (R : comRingType) (C : nat).
Implicit Types L A B : 'M[R]_C.

Lemma delta_mulr n (A : 'M[R]_C) (B : 'M[R]_(C, n)) t s :
  ((1%:M + A) *m B) t s = B t s + \sum_l A t l * B l s.
Proof. by rewrite mulmxDl mul1mx mxE [X in _ + X]mxE. Qed.

Lemma det_unit L : strictly_lower L -> \det (1%:M + L) = 1.
Proof.
move=> low; rewrite det_trig.
  by rewrite big1 // => t _; rewrite !mxE eqxx low ?addr0.
by apply/is_trig_mxP=> t s ts; rewrite !mxE low ?(ltnW ts) ?addr0 //= -val_eqE
  /= ltn_eqF.
Qed.

Lemma unit_inverseV L : strictly_lower L -> unit_inverse L *m (1%:M + L) = 1%:M.
Proof. by move=> low; rewrite /unit_inverse mul_adj_mx det_unit. Qed.

Lemma unit_inverse_mul L :
  strictly_lower L -> (1%:M + L) *m unit_inverse L = 1%:M.
Proof. by move=> low; rewrite /unit_inverse mul_mx_adj det_unit. Qed.

(** The inverse is the only one. *)
Lemma unit_inverse_unique L X : strictly_lower L ->
  (1%:M + L) *m X = 1%:M -> X = unit_inverse L.
Proof.
move=> low H; rewrite -[X]mul1mx -(unit_inverseV low) -mulmxA H.
by rewrite mulmx1.
Qed.

Lemma unit_solve n L (X Y : 'M[R]_(C, n)) : strictly_lower L ->
  (1%:M + L) *m X = Y -> X = unit_inverse L *m Y.
Proof.
by move=> low <-; rewrite mulmxA unit_inverseV // mul1mx.
Qed.

Lemma unit_inverse_row L t s : strictly_lower L ->
  unit_inverse L t s + \sum_l L t l * unit_inverse L l s = (t == s)%:R.
Proof. by move=> low; rewrite -delta_mulr unit_inverse_mul // mxE. Qed.

Lemma unit_inverse_upper L (t s : 'I_C) :
  strictly_lower L -> (t < s)%N -> unit_inverse L t s = 0.
Proof.
move=> low; have [m] := ubnP (val t); elim: m t => // m IH t tm ts.
rewrite -[LHS]addr0; have := unit_inverse_row t s low.
rewrite -val_eqE /= ltn_eqF // big1 // => l _.
have [tl|lt] := leqP t l; first by rewrite low ?mul0r.
by rewrite (IH l) ?mulr0 ?(ltn_trans lt ts) ?(leq_trans lt).
Qed.

Lemma unit_inverse_diag L t : strictly_lower L -> unit_inverse L t t = 1.
Proof.
move=> low; have := unit_inverse_row t t low; rewrite eqxx big1 ?addr0 // => l _.
have [tl|lt] := leqP t l; first by rewrite low ?mul0r.
by rewrite unit_inverse_upper ?mulr0.
Qed.

(** A system whose coupling from s to t decays by g s t has the same inverse,
    decayed alike, when g composes. *)
Definition decay_by (g : nat -> nat -> R) A : 'M[R]_C :=
  \matrix_(t, s) (A t s * g s t).

Lemma decay_byE g A t s : decay_by g A t s = A t s * g s t.
Proof. by rewrite mxE. Qed.

Lemma decay_by_lower g L : strictly_lower L -> strictly_lower (decay_by g L).
Proof. by move=> low t s ts; rewrite decay_byE low ?mul0r. Qed.

Lemma unit_inverse_decay (g : nat -> nat -> R) L : strictly_lower L ->
  (forall t, g t t = 1) ->
  (forall s l t, (s <= l <= t)%N -> g s l * g l t = g s t) ->
  unit_inverse (decay_by g L) = decay_by g (unit_inverse L).
Proof.
move=> low g1 gM; apply/esym/unit_inverse_unique; first exact: decay_by_lower.
apply/matrixP=> t s; rewrite delta_mulr decay_byE.
transitivity (g s t * ((1%:M + L) *m unit_inverse L) t s).
  rewrite delta_mulr mulrDr mulr_sumr; congr (_ + _); first exact: mulrC.
  apply: eq_bigr => l _; rewrite !decay_byE.
  have [tl|lt] := leqP t l; first by rewrite low // !(mul0r, mulr0).
  have [ls|sl] := ltnP l s; first by rewrite unit_inverse_upper ?(mul0r, mulr0).
  by rewrite -(gM s l t) ?sl ?(ltnW lt) //; ring.
rewrite unit_inverse_mul // mxE; case: eqP => [->|_]; last by rewrite mulr0.
by rewrite g1 mulr1.
Qed.

End Triangular.

Section Entries.
Variables (R : comRingType) (C : nat).

Lemma stackE n (f : nat -> 'cV[R]_n) (t : 'I_C) i : stack C f t i = f t i 0.
Proof. by rewrite mxE. Qed.

Lemma scoresE K (x y a : nat -> 'cV[R]_K) bound upto (t s : 'I_C) :
  scores C x y a bound upto t s = if (s < bound t)%N
    then \sum_i x t i 0 * ratio a s.+1 (upto t) i 0 * y s i 0 else 0.
Proof. by rewrite mxE. Qed.

Lemma weightedE V (d : nat -> 'cV[R]_V) upto (A : 'M[R]_C) B t j :
  weighted d upto A B t j =
  \sum_s A t s * ratio d s.+1 (upto t) j 0 * B s j.
Proof. by rewrite mxE. Qed.

Lemma subE m n (A B : 'M[R]_(m, n)) i j : (A - B) i j = A i j - B i j.
Proof. by rewrite !mxE. Qed.

Lemma addE m n (A B : 'M[R]_(m, n)) i j : (A + B) i j = A i j + B i j.
Proof. by rewrite !mxE. Qed.

Lemma mulE m n p (A : 'M[R]_(m, n)) (B : 'M[R]_(n, p)) i j :
  (A *m B) i j = \sum_l A i l * B l j.
Proof. by rewrite mxE. Qed.

End Entries.

Section Scores.
Variables (R : comRingType) (C K : nat).
Implicit Types x y f : nat -> 'cV[R]_K.

Lemma scores_lower x y f upto : strictly_lower (scores C x y f id upto).
Proof. by move=> t s ts; rewrite mxE ltnNge ts. Qed.

End Scores.

Section Lower.
Variables (R : comRingType) (C : nat).

Definition lower (A : 'M[R]_C) := forall t s : 'I_C, (t < s)%N -> A t s = 0.

Lemma strictly_lowerW A : strictly_lower A -> lower A.
Proof. by move=> low t s ts; rewrite low // ltnW. Qed.

Lemma unit_inverse_lower L : strictly_lower L -> lower (unit_inverse L).
Proof. by move=> low t s; exact: unit_inverse_upper. Qed.

(** Decays that compose go through a product of lower triangular matrices. *)
Lemma decay_by_mul (g : nat -> nat -> R) A B : lower A -> lower B ->
  (forall s l t, (s <= l <= t)%N -> g s l * g l t = g s t) ->
  decay_by g A *m decay_by g B = decay_by g (A *m B).
Proof.
move=> lA lB gM; apply/matrixP=> t s; rewrite decay_byE !mulE mulr_suml.
apply: eq_bigr => l _; rewrite !decay_byE.
have [tl|lt] := ltnP t l; first by rewrite lA // !mul0r.
have [ls|sl] := ltnP l s; first by rewrite lB // !(mul0r, mulr0).
by rewrite -(gM s l t) ?sl // [g s l * _]mulrC mulrACA.
Qed.

(** The same against what the start of the chunk decays by. *)
Lemma decay_by_start n (g : nat -> nat -> R) (h : nat -> R) A
    (X : 'M[R]_(C, n)) t j : lower A ->
  (forall s t, (s <= t)%N -> h s * g s t = h t) ->
  \sum_s decay_by g A t s * (h s * X s j) = h t * (A *m X) t j.
Proof.
move=> lA hg; rewrite mulE mulr_sumr; apply: eq_bigr => s _.
rewrite decay_byE; have [ts|st] := ltnP t s.
  by rewrite lA // !(mul0r, mulr0).
by rewrite -(hg s t) // [in RHS](mulrC (h s)) [RHS]mulrACA [X in X * _ = _]mulrC.
Qed.

End Lower.
