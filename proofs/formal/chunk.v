(** What is the chunked (WY) form?  One unit lower triangular inverse T a
    chunk, shared by all value columns; everything after it is a product.

    Decay ratios are products over the tokens between, never quotients, so that
    all of it is polynomial and makes sense over any commutative ring. *)
From carve Require Import recurrence.

Section Parts.
Variables (R : comRingType) (C : nat).

(** G_n-1 / G_m-1: what tokens m .. n-1 decay by. *)
Definition ratio n (f : nat -> 'cV[R]_n) s t : 'cV[R]_n :=
  \col_i \prod_(s <= l < t) f l i 0.

(** Vectors of the chunk's tokens as rows. *)
Definition stack n (f : nat -> 'cV[R]_n) : 'M[R]_(C, n) :=
  \matrix_(t < C, i < n) f t i 0.

(** x_t . (decay from s to upto t) . y_s where s < bound t, else 0. *)
Definition scores K (x y : nat -> 'cV[R]_K) (a : nat -> 'cV[R]_K)
    (bound upto : nat -> nat) : 'M[R]_C :=
  \matrix_(t < C, s < C)
    if (s < bound t)%N
    then \sum_i x t i 0 * ratio a s.+1 (upto t) i 0 * y s i 0 else 0.

(** A product of matrices whose term from token s to token t decays, value
    channel by value channel; without decay it is A *m B. *)
Definition weighted V (d : nat -> 'cV[R]_V) (upto : nat -> nat)
    (A : 'M[R]_C) (B : 'M[R]_(C, V)) : 'M[R]_(C, V) :=
  \matrix_(t < C, j < V)
    \sum_s A t s * ratio d s.+1 (upto t) j 0 * B s j.

Definition strictly_lower (L : 'M[R]_C) :=
  forall t s : 'I_C, (t <= s)%N -> L t s = 0.

(** The inverse of I + L, L strictly lower triangular: the determinant is one,
    so that the adjugate is the inverse, over any ring. *)
Definition unit_inverse (L : 'M[R]_C) : 'M[R]_C := \adj (1%:M + L).

End Parts.

Section Chunk.
Variables (R : comRingType) (K V : nat) (ro : readout) (scale : R).
Variables (C : nat) (x : nat -> token R K V) (S0 : 'M[R]_(K, V)).
Local Notation a_ := (fun t => a (x t)).
Local Notation d_ := (fun t => d (x t)).
Local Notation q_ := (fun t => q (x t)).
Local Notation k_ := (fun t => k (x t)).
Local Notation r_ := (fun t => address (x t)).
Local Notation G t := (ratio a_ 0 t).
Local Notation D t := (ratio d_ 0 t).

Definition L := scores C r_ k_ a_ id succn.
Definition T := unit_inverse L.
Definition P := scores C q_ k_ a_ (seen ro) (seen ro).

Definition R_hat := stack C (fun t => r_ t .* G t.+1).
Definition Q_hat := stack C (fun t => q_ t .* G (seen ro t)).
Definition K_tail := stack C (fun s => ratio a_ s.+1 C .* k_ s).
Definition WV := stack C (fun t => w (x t) .* v (x t)).
Definition D_update := stack C (fun t => D t.+1).
Definition D_read := stack C (fun t => D (seen ro t)).
Definition D_tail := stack C (fun s => ratio d_ s.+1 C).

(** What is written; outputs and end state, given that. *)
Definition U := weighted d_ succn T WV - D_update .* ((T *m R_hat) *m S0).
Definition outputs U :=
  scale *: (D_read .* (Q_hat *m S0) + weighted d_ (seen ro) P U).
Definition end_state U :=
  diag (G C) *m S0 *m diag (D C) + K_tail^T *m (D_tail .* U).

End Chunk.

(** The rows of a matrix as a list of columns. *)
Definition rows_of (R : comRingType) m n (A : 'M[R]_(m, n)) :=
  [seq (row t A)^T | t <- enum 'I_m].

(** Lengths of the chunks of T tokens, C each; the last may be shorter. *)
Definition chunk_lengths C T := rcons (nseq (T %/ C)%N C) (T %% C)%N.

Section Chunked.
Variables (R : comRingType) (K V : nat) (ro : readout) (scale : R).

(** A sequence cut in chunks of the given lengths, what is written in each
    found by `solve`: all outputs, and the final state. *)
Fixpoint chunked_by (X : Type) (bare : X -> token R K V)
    (solve : forall C, (nat -> X) -> 'M[R]_(K, V) -> 'M[R]_(C, V))
    (lengths : seq nat) (x : nat -> X) S0 :=
  if lengths is C :: rest then
    let U := solve C x S0 in
    let later := chunked_by bare solve rest (from C x)
                            (end_state (bare \o x) S0 U) in
    (rows_of (outputs ro scale (bare \o x) S0 U) ++ later.1, later.2)
  else ([::], S0).

(** The WY form. *)
Definition chunked := chunked_by id (@U R K V).

End Chunked.
