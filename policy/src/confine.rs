//! A process sheds what it will not need: the second half of its start, done by itself, once, with one thread, before it
//! reads its first untrusted byte.
//!
//! The order matters. Landlock before the mounts would forbid them; capabilities go only after the mounts that need
//! them; the filter comes last since it denies what the other steps use. `confine` is the list.

mod descriptors;
mod fence;
mod process;
mod root;

use std::os::fd::BorrowedFd;

use crate::last_words;
use crate::layer::{Layer, Layers, MissingLayer};
use crate::profile::{CompileError, Facts, Profile, ProfileError};
use crate::role::Role;

/// What to become.
#[derive(Debug)]
pub struct Confinement<'a> {
    /// Whose profile applies.
    pub role: Role,
    /// Descriptors to keep beside 0, 1 and 2; all others are closed.
    pub keep: &'a [BorrowedFd<'a>],
    /// Layers whose absence is accepted.
    pub tolerate: &'a Layers,
}

/// What the process says of itself when it is confined. Most of it the broker can see for itself; what it cannot see,
/// as Landlock, it must take from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    /// Landlock denied an open of the root directory.
    pub landlock_proved: bool,
    /// Layers that are missing, and whose absence was accepted.
    pub missing: Layers,
}

/// Why a process is not confined. It must end.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConfineError {
    #[error(transparent)]
    Missing(#[from] MissingLayer),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error("a process must confine itself before it has a second thread; it has {0}")]
    Threads(usize),
    #[error("making a first thread")]
    Prime(#[source] std::io::Error),
}

/// Confines the calling process. When this returns, everything but the profile's system calls on the kept descriptors is
/// out of reach for good.
pub fn confine(what: &Confinement<'_>) -> Result<Attestation, ConfineError> {
    let profile = Profile::of(what.role)?;
    let programs = profile.compile(Facts { pid: std::process::id() })?;
    last_words::explain(&profile);
    let mut attestation = shed(what, &profile)?;
    let filtered = programs.iter().try_for_each(|program| {
        fence::seccomp(program).map_err(|source| missing(Layer::Seccomp, "installing the filter", source))
    });
    accept(filtered, what.tolerate, &mut attestation.missing)?;
    Ok(attestation)
}

/// Every layer but seccomp, in order. Public to the red team, which shows what each layer stops without the filter.
pub fn shed(what: &Confinement<'_>, profile: &Profile) -> Result<Attestation, ConfineError> {
    process::single_threaded()?;
    process::prime_threads()?;
    process::single_threaded()?;
    let mut absent = Layers::new();
    let steps: [&dyn Fn() -> Step; 8] = [
        &|| root::empty(),
        &|| descriptors::close_others(what.keep),
        &|| process::limit(&profile.limits),
        &|| process::die_with_parent(),
        &|| process::drop_capabilities(),
        &|| process::no_new_privileges(),
        &|| process::restrain_speculation(&profile.speculation),
        &|| fence::landlock(),
    ];
    for step in steps {
        accept(step(), what.tolerate, &mut absent)?;
    }
    Ok(Attestation { landlock_proved: fence::landlock_holds(), missing: absent })
}

/// One layer, or why it is missing.
type Step = Result<(), MissingLayer>;

/// A missing layer is an error, or is noted where its absence is accepted.
fn accept(step: Step, tolerate: &Layers, absent: &mut Layers) -> Result<(), MissingLayer> {
    match step {
        Err(missing) if tolerate.contains(&missing.layer) => {
            absent.insert(missing.layer);
            Ok(())
        }
        other => other,
    }
}

fn missing(layer: Layer, step: &'static str, source: nix::Error) -> MissingLayer {
    MissingLayer { layer, step, source }
}
