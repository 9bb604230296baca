//! `bulkhead doctor`: what of confinement this host offers, found by confining a process that is given nothing, and looking
//! at it as at any other.

use std::collections::BTreeMap;

use ipc::control::FromDevice;
use ipc::outcome::{self, cause_chain};
use policy::verify::Verified;
use policy::{Layer, Layers};
use serde_json::{Value, json};

use crate::cgroups::{self, Place};
use crate::device::back_end::{BackEnd, BackEndError};
use crate::spawn::PATIENCE;

/// What the listing calls control groups, which are no layer: nothing is confined by them, but for what --limits says.
const GROUPS: &str = "control-groups";
const LIMITS: &str = "more of the host than --limits allows";

/// What is missing, and how that shows.
type Missing = BTreeMap<Layer, String>;

/// Prints every layer, and the remedy for each that is missing. The exit code says whether a machine could be started.
pub fn run(json: bool) -> u8 {
    let missing = match probe() {
        Ok(missing) => missing,
        Err(error) => {
            eprintln!("error: no process could be confined to try it: {}", cause_chain(&error));
            return outcome::START_FAILED;
        }
    };
    let groups = Place::find();
    if json {
        let layers = Layer::ALL.map(|layer| (layer.name().to_owned(), of(layer, &missing)));
        println!("{}", layers.into_iter().chain([(GROUPS.to_owned(), of_groups(&groups))]).collect::<Value>());
    } else {
        Layer::ALL.iter().for_each(|layer| print!("{}", line(*layer, &missing)));
        print!("{}", line_of_groups(&groups));
    }
    if missing.is_empty() { outcome::POWER_OFF } else { outcome::START_FAILED }
}

/// Confines a process that does without whatever is missing.
fn probe() -> Result<Missing, BackEndError> {
    let all: Layers = Layer::ALL.into_iter().collect();
    let mut probe = BackEnd::start("probe", policy::Role::DevBlk, None, &all)?;
    let ready = match probe.link.await_one(std::time::Instant::now() + PATIENCE) {
        Ok(Some(FromDevice::Ready { landlock_proved, missing })) => (landlock_proved, missing),
        Ok(Some(FromDevice::Failed(reason))) => return Err(BackEndError::Failed(reason)),
        Ok(_) => return Err(BackEndError::Late),
        Err(_) => {
            probe.process.words.read_last();
            return Err(BackEndError::Died);
        }
    };
    let mut missing: Missing = probe.process.lacks().iter().map(|layer| (*layer, "it cannot be made".into())).collect();
    for name in ready.1 {
        missing.extend(name.parse::<Layer>().ok().map(|layer| (layer, "the process could not take it on".into())));
    }
    if !ready.0 {
        missing.insert(Layer::Landlock, "nothing was denied".into());
    }
    let seen = Verified::of(probe.process.pid()).map_err(crate::process::ProcessError::from)?;
    missing.extend(seen.findings());
    Ok(missing)
}

/// Where limits could be kept. A machine without limits does not need it.
fn of_groups(groups: &Result<Place, String>) -> Value {
    match groups {
        Ok(place) => json!({ "present": true, "keeps": LIMITS, "found": place.to_string() }),
        Err(why) => json!({ "present": false, "keeps": LIMITS, "found": why, "remedy": cgroups::REMEDY }),
    }
}

fn line_of_groups(groups: &Result<Place, String>) -> String {
    match groups {
        Ok(place) => format!("ok       {GROUPS:18} keep a machine to its limits: {place}\n"),
        Err(why) => format!("without  {GROUPS:18} no --limits: {why}; remedy: {}\n", cgroups::REMEDY),
    }
}

fn of(layer: Layer, missing: &Missing) -> Value {
    match missing.get(&layer) {
        None => json!({ "present": true, "keeps": layer.keeps() }),
        Some(how) => json!({ "present": false, "keeps": layer.keeps(), "found": how, "remedy": layer.remedy() }),
    }
}

fn line(layer: Layer, missing: &Missing) -> String {
    let (name, keeps) = (layer.name(), layer.keeps());
    match missing.get(&layer) {
        None => format!("ok       {name:18} keeps a process from {keeps}\n"),
        Some(how) => format!("MISSING  {name:18} {how}; remedy: {}\n", layer.remedy()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_layer_comes_with_its_remedy() {
        let missing = Missing::from([(Layer::Seccomp, "mode 0".to_owned())]);
        assert!(line(Layer::Seccomp, &missing).contains("CONFIG_SECCOMP_FILTER"));
        assert!(line(Layer::Landlock, &missing).starts_with("ok"));
        assert_eq!(of(Layer::Seccomp, &missing)["present"], false);
    }
}
