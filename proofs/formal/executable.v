(** Can the definition be run?  The recurrence on lists, over any commutative
    ring, proved equal to that of recurrence.v; and the fractions of Coq's
    library as such a ring, on which it is run beside the C++ library. *)
From mathcomp Require Import ssrZ.
From Coq Require Import ZArith QArith Qcanon.
From carve Require Import recurrence chunk column wy general.
Local Open Scope nat_scope.
Local Open Scope ring_scope.

Section Lists.
Variables (R : comRingType) (K V : nat) (order ro : readout) (scale : R).

(** A token as lists; a state as the list of its columns. *)
Record token_list := TokenList {
  lq : seq R; lk : seq R; la : seq R; lr : seq R; ly : seq R;
  lv : seq R; ld : seq R; le : seq R; lw : seq R
}.
Local Notation at_ s i := (nth 0 s i).
Local Notation at2 S i j := (nth 0 (nth [::] S j) i).

Definition sum_to n (f : nat -> R) := foldr (fun i s => f i + s) 0 (iota 0 n).

Definition run_step x (S : seq (seq R)) : seq (seq R) := mkseq (fun j =>
  let kept := mkseq (fun i => at_ (la x) i * at_ (ld x) j * at2 S i j) K in
  let seen_by_erase := if order is after then kept else nth [::] S j in
  let written := at_ (lw x) j * at_ (lv x) j in
  let taken := at_ (le x) j *
               sum_to K (fun i => at_ (lr x) i * at_ seen_by_erase i) in
  mkseq (fun i => at_ kept i + at_ (lk x) i * written
                  - at_ (ly x) i * taken) K) V.

Definition run_read x (S : seq (seq R)) : seq R :=
  mkseq (fun j => scale * sum_to K (fun i => at_ (lq x) i * at2 S i j)) V.

Fixpoint run xs S : seq (seq R) * seq (seq R) :=
  if xs is x :: rest then
    let S' := run_step x S in
    let o := run_read x (if ro is after then S' else S) in
    let later := run rest S' in (o :: later.1, later.2)
  else ([::], S).

Definition vector n (s : seq R) : 'cV[R]_n := \col_(i < n) at_ s i.
Definition matrix_of S : 'M[R]_(K, V) := \matrix_(i < K, j < V) at2 S i j.
Definition general_of_lists x : general R K V :=
  General (vector K (lq x)) (vector K (lk x)) (vector K (la x))
          (vector K (lr x)) (vector K (ly x))
          (vector V (lv x)) (vector V (ld x)) (vector V (le x))
          (vector V (lw x)).

Lemma sum_toE n f : sum_to n f = \sum_(i < n) f i.
Proof.
rewrite -(big_mkord xpredT f) /index_iota subn0 /sum_to.
by elim: (iota 0 n) => [|i s IH]; rewrite ?big_nil //= big_cons IH.
Qed.

Lemma run_stepE x S :
  matrix_of (run_step x S) = general_step order (general_of_lists x) (matrix_of S).
Proof.
apply/matrixP=> i j; rewrite subE addE general_decayedE !outerE !elementwiseE.
rewrite tr_mulE [LHS]mxE nth_mkseq // nth_mkseq // nth_mkseq // sum_toE !mxE.
congr (_ - _ * (_ * _)); apply: eq_bigr => l _; rewrite [gr _ _ _]mxE /looked_up.
congr (_ * _); case: (order); last by rewrite mxE.
by rewrite general_decayedE nth_mkseq // !mxE.
Qed.

Lemma run_readE x S : vector V (run_read x S) =
  scale *: ((matrix_of S)^T *m gq (general_of_lists x)).
Proof.
apply/colP=> j; rewrite [RHS]mxE tr_mulE mxE nth_mkseq // sum_toE.
by congr (_ * _); apply: eq_bigr => i _; rewrite !mxE.
Qed.

Variable none : token_list.

(** What runs is the general step's recurrence. *)
Theorem run_is_recurrent xs S :
  let x := fun t => general_of_lists (nth none xs t) in
  [seq vector V o | o <- (run xs S).1]
    = mkseq (general_output order ro scale x (matrix_of S)) (size xs) /\
  matrix_of (run xs S).2 = general_state order x (matrix_of S) (size xs).
Proof.
elim: xs S => //= y xs IH S; have [IHo IHs] := IH (run_step y S).
pose x t := general_of_lists (nth none (y :: xs) t).
have later n : general_state order x (matrix_of S) n.+1 =
    general_state order (fun t => general_of_lists (nth none xs t))
                  (matrix_of (run_step y S)) n.
  by rewrite -[n.+1]add1n /general_state walk_from run_stepE.
split; last by rewrite IHs -later.
rewrite -[(size xs).+1]add1n mkseq_cat /= IHo; congr (_ :: _).
  rewrite /general_output run_readE; congr (_ *: (_^T *m _)).
  by case: (ro) => //=; rewrite run_stepE.
apply: eq_mkseq => t; rewrite /general_output add1n.
congr (_ *: (_^T *m _)); rewrite -later; by case: (ro).
Qed.

(** And that of a token of the first kind, r and y being b * k and k. *)
Theorem generalize_step (x : token R K V) S :
  general_step after (generalize x) S = step x S.
Proof.
rewrite /general_step /step /update /looked_up /=.
by rewrite linearB /= mulmxBr addrA.
Qed.

End Lists.

(** Fractions in lowest terms, with Leibniz equality, are a ring. *)
Definition Qc_code (x : Qc) : Z * Z := (Qnum x, Zpos (Qden x)).
Definition Qc_decode (c : Z * Z) : option Qc :=
  if c.2 is Zpos p then Some (Q2Qc (Qmake c.1 p)) else None.
Lemma Qc_codeK : pcancel Qc_code Qc_decode.
Proof.
move=> x; congr Some; apply: Qc_is_canon.
apply: Qeq_trans (Qred_correct _) _.
by case: x => [[n p] c]; exact: Qeq_refl.
Qed.
Definition Qc_eqMixin := PcanEqMixin Qc_codeK.
Canonical Qc_eqType := EqType Qc Qc_eqMixin.
Definition Qc_choiceMixin := PcanChoiceMixin Qc_codeK.
Canonical Qc_choiceType := ChoiceType Qc Qc_choiceMixin.
Definition Qc_zmodMixin := ZmodMixin Qcplus_assoc Qcplus_comm Qcplus_0_l
  (fun x => etrans (Qcplus_comm _ _) (Qcplus_opp_r x)).
Canonical Qc_zmodType := ZmodType Qc Qc_zmodMixin.
Lemma Qc_1_neq0 : Q2Qc 1 != Q2Qc 0 :> Qc. Proof. by []. Qed.
Definition Qc_ringMixin := ComRingMixin Qcmult_assoc Qcmult_comm Qcmult_1_l
  Qcmult_plus_distr_l Qc_1_neq0.
Canonical Qc_ringType := RingType Qc Qc_ringMixin.
Canonical Qc_comRingType := ComRingType Qc Qcmult_comm.

(** One instance, with the results that are to be checked against `run`. *)
Record instance := Instance {
  keys : nat; values : nat; order_of : readout; readout_of : readout;
  scale_of : Qc; tokens : seq (token_list Qc_comRingType);
  start : seq (seq Qc);
  outputs_found : seq (seq Qc); final_found : seq (seq Qc)
}.
Definition fraction n p := Q2Qc (Qmake n p).

Definition times (x y : seq Qc) : seq Qc :=
  [seq Qcmult p.1 p.2 | p <- zip x y].

Definition agrees x :=
  let found := run (keys x) (values x) (order_of x) (readout_of x) (scale_of x)
                   (tokens x) (start x) in
  (found.1 == outputs_found x) && (found.2 == final_found x).

(** The same instance with one number of its results off by one. *)
Definition bump (s : seq (seq Qc)) : seq (seq Qc) :=
  if s is (y :: r) :: rest then (Qcplus y (Q2Qc 1) :: r) :: rest else s.
Definition wrong_output x := Instance (keys x) (values x) (order_of x)
  (readout_of x) (scale_of x) (tokens x) (start x)
  (bump (outputs_found x)) (final_found x).
Definition wrong_final x := Instance (keys x) (values x) (order_of x)
  (readout_of x) (scale_of x) (tokens x) (start x)
  (outputs_found x) (bump (final_found x)).
