//! The member: confines itself as a role does, says Ready, waits for the word, tries, and tells if it still can.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use policy::confine::{Attestation, Confinement, confine, shed};
use policy::profile::Profile;
use policy::{Layers, Role, last_words};

use super::{ATTEMPTS, Strength, Target};

/// The descriptor of the channel to the lead.
const CONTROL: i32 = 3;

/// The whole life of a member. Its arguments are those that the lead gives.
pub fn member(role: Role, strength: Strength, attempt: &str, target: Target) -> Result<(), Box<dyn std::error::Error>> {
    // A file, since the profiles allow read and write but not what the library calls for a socket.
    // SAFETY: the lead put the channel there, and this is the only owner that is made of it.
    let mut control = File::from(unsafe { OwnedFd::from_raw_fd(CONTROL) });
    last_words::install()?;
    let attestation = become_confined(role, strength, &control)?;
    control.write_all(if attestation.landlock_proved { b"L" } else { b"-" })?;
    let mut go = [0];
    control.read_exact(&mut go)?;
    let result = attempt_by_name(attempt, target);
    control.write_all(&result.to_le_bytes())?;
    Ok(())
}

fn become_confined(role: Role, strength: Strength, control: &File) -> Result<Attestation, Box<dyn std::error::Error>> {
    let tolerate = Layers::new();
    let keep = [control.as_fd()];
    let confinement = Confinement { role, keep: &keep, tolerate: &tolerate };
    Ok(match strength {
        Strength::Full => confine(&confinement)?,
        Strength::WithoutFilter => shed(&confinement, &Profile::of(role)?)?,
    })
}

/// Makes the attempt: the error number of its last step, 0 for success.
fn attempt_by_name(name: &str, target: Target) -> i32 {
    if let Some(number) = name.strip_prefix("syscall ").and_then(|n| n.parse().ok()) {
        // SAFETY: no argument points anywhere; the filter decides before the kernel looks at them.
        return outcome(unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) });
    }
    match ATTEMPTS.iter().find(|a| a.name == name) {
        Some(attempt) => (attempt.make)(target),
        None => libc::ENOENT,
    }
}

/// 0, or the error number, of a call that has just returned.
pub fn outcome(returned: i64) -> i32 {
    if returned < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}
