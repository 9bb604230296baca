//! What each process of a virtual machine may do: profiles, confinement, and its verification from outside.
//!
//! Knows only the kernel. The broker starts a process with [`launch`], which puts it into namespaces of its own; the
//! process, once its program runs and before it reads one untrusted byte, sheds everything else with [`confine`]; the
//! broker then looks at it through /proc with [`verify`], and hands over nothing until that has succeeded.
//!
//! What a role may ask of the kernel is data: one file per role in `profiles/`, each system call with its reason
//! ([`profile`]). What a layer is for, and what to do where the host lacks it, is in [`layer`]. A process that breaks
//! its profile says so with its last words ([`last_words`]) and ends; nothing else ends with it.
//!
//! Why the program is executed first and confines itself after, rather than being a static program started in an empty
//! root: the dynamic loader runs with the host's files but without any input from outside, so a build needs no special
//! target, and the profiles need not allow what a loader does. Namespaces are entered before the exec, since a process
//! cannot move itself into a PID namespace.

pub mod confine;
pub mod last_words;
pub mod launch;
pub mod layer;
pub mod profile;
pub mod role;
pub mod verify;

pub use layer::{Layer, Layers};
pub use role::Role;
