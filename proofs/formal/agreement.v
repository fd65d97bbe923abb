(** Does the library compute what the proofs are about?  Every result that the
    library printed is what the definition gives; and the comparison is one that
    can fail: with one number of one result changed, every one of them does. *)
From mathcomp Require Import all_ssreflect.
From carve Require Import executable instances.

Theorem library_agrees : all agrees instances.
Proof. by vm_compute. Qed.

Theorem one_wrong_output_is_seen :
  ~~ has (fun x => agrees (wrong_output x)) instances.
Proof. by vm_compute. Qed.

Theorem one_wrong_state_is_seen :
  ~~ has (fun x => agrees (wrong_final x)) instances.
Proof. by vm_compute. Qed.
