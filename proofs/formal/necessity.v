(** When does one inverse serve all value columns?  WY-3 and the first half of
    WY-6: exactly when the columns' couplings agree.  WY-4: even up to a
    diagonal change of variables a column, a chunk whose tokens are all coupled
    needs the gate constant along V, at every token but the first, and but the
    last one that erases anything. *)
From carve Require Import recurrence chunk column wy columns.

(** One matrix T solves every column's system, whatever the right-hand side. *)
Definition one_inverse (R : comRingType) V C (systems : 'I_V -> 'M[R]_C) :=
  exists T : 'M[R]_C, forall j n (rhs : 'M[R]_(C, n)),
    (1%:M + systems j) *m (T *m rhs) = rhs.

(** WY-6, first half, over any commutative ring. *)
Theorem one_inverse_iff_agree (R : comRingType) V C (systems : 'I_V -> 'M[R]_C) :
  (forall j, strictly_lower (systems j)) ->
  one_inverse systems <-> (forall j j', systems j = systems j').
Proof.
move=> low; split=> [[T0 H] j j'|agree].
  have inv l : (1%:M + systems l) *m T0 = 1%:M by rewrite -[T0]mulmx1 H.
  have := mulmx1C (inv j); have E := inv j'.
  move=> /(congr1 (mulmx (1%:M + systems j'))).
  by rewrite mulmxA E mul1mx mulmx1 => /addrI.
case: (pickP (fun _ : 'I_V => true)) => [j0 _|none].
  exists (unit_inverse (systems j0)) => j n rhs.
  by rewrite mulmxA (agree j j0) unit_inverse_mul // mul1mx.
by exists 1%:M => j; have := none j.
Qed.

(** Of full masks this asks that the columns' couplings be the same. *)
Theorem one_inverse_for_mask (R : comRingType) K V C (x : nat -> masked R K V) :
  one_inverse (fun j : 'I_V => column_L C x j) <->
  (forall j j', column_L C x j = column_L C x j').
Proof. by apply: one_inverse_iff_agree => j; exact: scores_lower. Qed.

(** Given the keys: exactly when the difference of any two columns of a token's
    mask, at its key, is orthogonal to every earlier key as the token sees it. *)
Definition earlier_key (R : comRingType) K V (x : nat -> masked R K V) s t :=
  ratio (fun t => a (x t)) s.+1 t.+1 .* k (x s).

Theorem mask_criterion (R : comRingType) K V C (x : nat -> masked R K V) :
  one_inverse (fun j : 'I_V => column_L C x j) <->
  (forall t s : 'I_C, (s < t)%N -> forall j j',
     ((column_address x j t - column_address x j' t)^T
        *m earlier_key x s t) 0 0 = 0).
Proof.
have E j j' (t s : 'I_C) : (s < t)%N ->
    column_L C x j t s - column_L C x j' t s =
    ((column_address x j t - column_address x j' t)^T *m earlier_key x s t) 0 0.
  move=> st; rewrite !scoresE st tr_mulE -sumrB; apply: eq_bigr => i _.
  by rewrite subE [earlier_key _ _ _ _ _]elementwiseE; ring.
rewrite one_inverse_for_mask; split=> [agree t s st j j'|crit j j'].
  by rewrite -E // (agree j j') subrr.
apply/matrixP=> t s; have [ts|st] := leqP t s.
  by rewrite !(scores_lower _ _ _ _ ts).
by apply/eqP; rewrite -subr_eq0 E // crit.
Qed.

(** So where the earlier keys span, the columns of a token's mask agree in all
    channels of its key that are not zero. *)
Theorem mask_columns_agree (F : fieldType) K V C (x : nat -> masked F K V) :
  one_inverse (fun j : 'I_V => column_L C x j) ->
  forall t : 'I_C,
  row_full (\matrix_(s < C) if (s < t)%N then (earlier_key x s t)^T else 0) ->
  forall i j j', k (x t) i 0 != 0 -> E (x t) i j = E (x t) i j'.
Proof.
move=> /mask_criterion crit t full i j j' ki.
suff /colP/(_ i) : column_address x j t = column_address x j' t.
  by rewrite !elementwiseE ![col _ _ _ _]mxE => /(mulIf ki).
apply/eqP; rewrite -subr_eq0; apply/eqP/(row_full_inj full); rewrite mulmx0.
apply/row_matrixP=> s; rewrite row_mul rowK linear0.
case: ifP => st; last by rewrite mul0mx.
rewrite -[LHS]trmxK trmx_mul trmxK; apply/matrixP=> m n; rewrite !ord1 mxE.
by rewrite crit // mxE.
Qed.

Section ValueGate.
Variables (R : comRingType) (C V : nat).
Implicit Types (L : 'M[R]_C) (g : 'M[R]_(C, V)).

(** The system of column j under the value gate g, token by value channel. *)
Definition gated g L (j : 'I_V) : 'M[R]_C := \matrix_(t, s) (g t j * L t s).

Lemma gatedE g L j t s : gated g L j t s = g t j * L t s.
Proof. by rewrite mxE. Qed.

Lemma gated_lower g L j : strictly_lower L -> strictly_lower (gated g L j).
Proof. by move=> low t s ts; rewrite gatedE low // mulr0. Qed.

(** The gate is constant along the value axis at token t. *)
Definition constant_at g t := forall j j', g t j = g t j'.

End ValueGate.

(** WY-3, over any integral domain: one inverse if and only if the gate is
    constant along V at every token whose row of L is not zero. *)
Theorem one_inverse_iff_constant (R : idomainType) V C (L : 'M[R]_C)
    (g : 'M[R]_(C, V)) : strictly_lower L ->
  one_inverse (gated g L) <->
  (forall t, (exists s, L t s != 0) -> constant_at g t).
Proof.
move=> low; rewrite one_inverse_iff_agree; last first.
  by move=> j; exact: gated_lower.
split=> [agree t [s Ls] j j'|crit j j'].
  by have /matrixP/(_ t s) := agree j j'; rewrite !gatedE => /(mulIf Ls).
apply/matrixP=> t s; rewrite !gatedE; have [->|Ls] := eqVneq (L t s) 0.
  by rewrite !mulr0.
by rewrite (crit t _ j j') //; exists s.
Qed.

(** The same for the tokens of a chunk. *)
Theorem one_inverse_for_tokens (R : idomainType) K V C
    (x : nat -> token R K V) :
  one_inverse (fun j : 'I_V => column_L C (fun t => both_gates (x t)) j) <->
  (forall t : 'I_C, (exists s, L C x t s != 0) ->
    forall j j', e (x t) j 0 = e (x t) j' 0).
Proof.
pose g : 'M[R]_(C, V) := \matrix_(t < C, j < V) e (x t) j 0.
have E j : column_L C (fun t => both_gates (x t)) j = gated g (L C x) j.
  by apply/matrixP=> t s; rewrite column_L_value_gate gatedE [g t j]mxE.
rewrite one_inverse_iff_agree; last by move=> j; exact: scores_lower.
transitivity (forall j j', gated g (L C x) j = gated g (L C x) j').
  by split=> H j j'; have := H j j'; rewrite !E.
rewrite -one_inverse_iff_agree; last first.
  by move=> j; apply: gated_lower; exact: scores_lower.
rewrite one_inverse_iff_constant; last exact: scores_lower.
by split=> H t Ls j j'; have := H t Ls j j'; rewrite !mxE.
Qed.

(** So erase on the key axis is sufficient ... *)
Theorem key_axis_sufficient (R : comRingType) V C (L : 'M[R]_C)
    (g : 'M[R]_(C, V)) : strictly_lower L ->
  (forall t, constant_at g t) -> one_inverse (gated g L).
Proof.
move=> low const; apply/one_inverse_iff_agree => [j|j j'].
  exact: gated_lower.
by apply/matrixP=> t s; rewrite !gatedE (const t j j').
Qed.

(** ... and not necessary, coupled tokens or not: two coupled tokens, the gate
    of the first varies along V. *)
Theorem key_axis_not_necessary (R : comRingType) :
  exists (L : 'M[R]_2) (g : 'M[R]_(2, 2)),
  [/\ strictly_lower L, L 1 0 = 1, ~ constant_at g 0 & one_inverse (gated g L)].
Proof.
exists (\matrix_(t, s) (if (s < t)%N then 1 else 0)).
exists (\matrix_(t, j) (if (t == 0) && (j == 0) then 0 else 1)).
split=> [t s ts|||]; rewrite ?mxE //=.
- by rewrite ltnNge ts.
- by move=> /(_ 0 1); rewrite !mxE /= => /esym/eqP; rewrite oner_eq0.
apply/one_inverse_iff_agree => [j t s ts|j j'].
  by rewrite gatedE !mxE ltnNge ts mulr0.
apply/matrixP=> t s; rewrite !gatedE !mxE.
case: (ltnP s t) => st; last by rewrite !mulr0.
by have /negPf -> : t != 0 by rewrite -val_eqE /= -lt0n (leq_ltn_trans _ st).
Qed.

Section UpToDiagonals.
Variables (F : fieldType) (C V : nat).
Variables (L : 'M[F]_C) (g : 'M[F]_(C, V)).
Hypothesis low : strictly_lower L.
Local Notation T_ j := (unit_inverse (gated g L j)).

(** One matrix T gives the inverse of every column, up to an invertible
    diagonal on either side of it, another for each column. *)
Definition one_inverse_up_to_diagonals :=
  exists T : 'M[F]_C, forall j, exists left right : 'I_C -> F,
    (forall t, left t != 0 /\ right t != 0) /\
    (forall t s, T_ j t s = left t * T t s * right s).

(** Token t erases something in some channel. *)
Definition erases_something t := exists j, g t j != 0.

(** L enters through its pattern of zeros alone; here all tokens are coupled. *)
Hypothesis coupled : forall t s : 'I_C, (s < t)%N -> L t s != 0.

Lemma intertwine (T1 M1 T2 M2 D : 'M[F]_C) :
  T1 *m M1 = 1%:M -> M1 *m T1 = 1%:M -> T2 *m M2 = 1%:M -> M2 *m T2 = 1%:M ->
  T1 *m D = D *m T2 <-> D *m M2 = M1 *m D.
Proof.
move=> TM1 MT1 TM2 MT2; split=> H.
  by rewrite -[LHS]mul1mx -MT1 -mulmxA [T1 *m _]mulmxA H -!mulmxA TM2 mulmx1.
by rewrite -[LHS]mulmx1 -MT2 mulmxA -[T1 *m D *m _]mulmxA H mulmxA TM1 mul1mx.
Qed.

(** Two columns similar by the diagonal A, in terms of the gates. *)
Lemma similar_gates j j' (A : 'I_C -> F) : (forall t, A t != 0) ->
  (forall t s, T_ j t s = A t * T_ j' t s / A s) <->
  (forall t s : 'I_C, (s < t)%N -> g t j' * A t = g t j * A s).
Proof.
move=> A0; pose D : 'M[F]_C := diag_mx (\row_t A t).
have DE t : D t t = A t by rewrite !mxE eqxx.
have lowj l := @gated_lower _ _ _ g L l low.
have leftD (X : 'M[F]_C) t s : (D *m X) t s = A t * X t s.
  by rewrite /D mul_diag_mx !mxE.
have rightD (X : 'M[F]_C) t s : (X *m D) t s = X t s * A s.
  by rewrite /D mul_mx_diag !mxE.
have T_form : (forall t s, T_ j t s = A t * T_ j' t s / A s) <->
    T_ j *m D = D *m T_ j'.
  split=> [H|/matrixP H t s].
    by apply/matrixP=> t s; rewrite leftD rightD H mulfVK.
  by have := H t s; rewrite leftD rightD => <-; rewrite mulfK.
have M_form : T_ j *m D = D *m T_ j' <->
    D *m (1%:M + gated g L j') = (1%:M + gated g L j) *m D.
  exact: intertwine (unit_inverseV (lowj j)) (unit_inverse_mul (lowj j))
    (unit_inverseV (lowj j')) (unit_inverse_mul (lowj j')).
rewrite T_form M_form; split=> [/matrixP H t s st|H].
  have := H t s; rewrite leftD rightD !addE ![1%:M t s]mxE -val_eqE /=.
  rewrite gtn_eqF // !add0r !gatedE mulrA [X in _ = X]mulrAC => E.
  by apply: (mulIf (coupled st)); rewrite -E [A t * _]mulrC.
apply/matrixP=> t s; rewrite leftD rightD !addE mulrDl mulrDr !gatedE; congr (_ + _).
  by rewrite !mxE; case: eqP => [->|_]; rewrite ?mulr1 ?mul1r // mulr0 mul0r.
have [ts|st] := leqP t s; first by rewrite low // !(mulr0, mul0r).
by rewrite mulrA [A t * _]mulrC (H _ _ st) mulrAC.
Qed.

(** WY-4, for any gates, zeros included. *)
Theorem up_to_diagonals_iff :
  one_inverse_up_to_diagonals <->
  (forall t : 'I_C, (0 < t)%N ->
    (forall j j', (g t j == 0) = (g t j' == 0)) /\
    ((exists2 t' : 'I_C, (t < t')%N & erases_something t') -> constant_at g t)).
Proof.
split=> [[T H]|crit].
  have ties j j' : exists2 A : 'I_C -> F, (forall t, A t != 0) &
      forall t s : 'I_C, (s < t)%N -> g t j' * A t = g t j * A s.
    have [l [r [lr0 E]]] := H j; have [l' [r' [lr0' E']]] := H j'.
    have A0 t : l t / l' t != 0.
      by rewrite mulf_neq0 ?invr_eq0 //; [case: (lr0 t)|case: (lr0' t)].
    exists (fun t => l t / l' t) => //; apply/similar_gates => // t s.
    have one (l0 r0 : 'I_C -> F) k :
        (forall t s, T_ k t s = l0 t * T t s * r0 s) ->
        forall t, l0 t * T t t * r0 t = 1.
      by move=> H0 u; rewrite -H0 unit_inverse_diag //; exact: gated_lower.
    have Ts0 : T s s != 0.
      apply/eqP=> T0; have := one _ _ _ E s.
      by rewrite T0 mulr0 mul0r => /esym/eqP; rewrite oner_eq0.
    have [ls rs] := lr0 s; have [ls' rs'] := lr0' s; have [lt' _] := lr0' t.
    have rE : r s = (l s * T s s)^-1.
      by apply: (mulfI (mulf_neq0 ls Ts0)); rewrite (one _ _ _ E) divff // mulf_neq0.
    have rE' : r' s = (l' s * T s s)^-1.
      by apply: (mulfI (mulf_neq0 ls' Ts0)); rewrite (one _ _ _ E') divff // mulf_neq0.
    rewrite E E' rE rE' !invfM invrK.
    rewrite !mulrA [l t / l' t * l' t]mulfVK // -!mulrA; congr (_ * (_ * _)).
    by rewrite [RHS]mulrCA [X in _ = _ * X]mulrCA mulVf // mulr1 mulrC.
  move=> t t0.
  have zeros (u : 'I_C) : (0 < u)%N -> forall j j', (g u j == 0) = (g u j' == 0).
    move=> u0 j j'; have [A A0 tie] := ties j j'.
    have := tie u (Ordinal (leq_ltn_trans (leq0n u) (ltn_ord u))) u0.
    move=> /(congr1 (fun y => y == 0)); rewrite !mulf_eq0.
    by rewrite (negPf (A0 _)) (negPf (A0 _)) !orbF => ->.
  split=> [|[t' tt' [j0 g0]] j j']; first exact: zeros.
  have [A A0 tie] := ties j j'.
  pose first := Ordinal (leq_ltn_trans (leq0n t) (ltn_ord t)).
  have t'0 : (0 < t')%N := leq_ltn_trans (leq0n t) tt'.
  have gj : g t' j != 0 by rewrite (zeros t' t'0 j j0).
  have E : A t = A first.
    by apply: (mulfI gj); rewrite -(tie t' t tt') -(tie t' first t'0).
  by apply: (mulIf (A0 t)); rewrite {1}E -(tie t first t0).
case: (pickP (fun _ : 'I_V => true)) => [j0 _|none]; last first.
  by exists 1%:M => j; have := none j.
exists (T_ j0) => j.
pose free (t : 'I_C) := [forall t' : 'I_C, (t < t')%N ==> [forall l, g t' l == 0]].
pose A (t : 'I_C) := if [&& free t, (0 < t)%N & g t j0 != 0] then g t j / g t j0 else 1.
have A0 t : A t != 0.
  rewrite /A; case: ifP => [/and3P[_ t0 gt]|_]; last exact: oner_neq0.
  have [z _] := crit t t0.
  by rewrite mulf_neq0 ?invr_eq0 // (z j j0).
exists A, (fun s => (A s)^-1); split=> [t|]; first by rewrite invr_eq0 A0.
apply/similar_gates => // t s st.
have t0 : (0 < t)%N := leq_ltn_trans (leq0n s) st.
have [z const] := crit t t0.
have [gt0|gt] := eqVneq (g t j0) 0.
  by have := z j j0; rewrite gt0 eqxx => /eqP ->; rewrite !mul0r.
have -> : A s = 1.
  rewrite /A; case: ifP => // /and3P[/forallP/(_ t)/implyP/(_ st)].
  by move=> /forallP/(_ j0); rewrite (negPf gt).
rewrite mulr1 /A gt t0 !andbT; case: ifP => [_|/negbT].
  by rewrite mulrC mulfVK.
rewrite negb_forall => /existsP[t']; rewrite negb_imply => /andP[tt'].
rewrite negb_forall => /existsP[l gl]; rewrite mulr1; apply: const.
by exists t' => //; exists l.
Qed.

(** WY-4 for gates that are nowhere zero: constant along V at all tokens but
    the first and the last. *)
Theorem up_to_diagonals_iff_constant : (0 < V)%N ->
  (forall t j, g t j != 0) ->
  one_inverse_up_to_diagonals <->
  (forall t : 'I_C, (0 < t)%N -> (t.+1 < C)%N -> constant_at g t).
Proof.
move=> V0 nz; rewrite up_to_diagonals_iff; split=> [H t t0 tC|H t t0].
  have [_] := H t t0; apply; exists (Ordinal tC) => //=.
  by exists (Ordinal V0).
split=> [j j'|[t' tt' _]]; first by rewrite !(negPf (nz _ _)).
by apply: H => //; exact: leq_ltn_trans tt' (ltn_ord t').
Qed.

End UpToDiagonals.
