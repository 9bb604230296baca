//! The machine's control group (version 2 alone): one group for the machine, with one below it for each process.
//!
//! ```text
//! BASE/bulkhead-NAME/        the limits of the machine
//!      ├── broker/           this process, where BASE is its own group: a group with groups below it has no processes
//!      ├── vmm/
//!      └── disk0/ ...        each with the limits of a device
//! ```
//!
//! BASE is our own group where systemd has delegated it to us (`Delegate=`, which it marks by an extended attribute);
//! else, for root and only if limits are wanted, the root of the hierarchy. Anywhere else groups are somebody else's to
//! arrange. Everything is removed at the end. What a killed broker leaves is empty groups, as its processes end with it: a
//! service manager removes them with the unit, and the next machine of that name does else.

mod place;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::limits::Limits;
pub use place::{Place, REMEDY};

/// Controllers that are used where they are to be had.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// How often, and with what pause, a group is tried to be removed whose last process has just ended.
const TRIES: (u32, Duration) = (20, Duration::from_millis(10));

/// See the module.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    base: PathBuf,
    /// We were in BASE itself, and have moved.
    moved: bool,
    /// Controllers that we have switched on in BASE.
    switched_on: Vec<&'static str>,
    device_memory: Option<u64>,
}

/// Why limits cannot be kept.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum CgroupError {
    #[error("limits are asked for, and {0}. Remedy: {REMEDY}; or ask for no limits")]
    NotDelegated(String),
    #[error(
        "limits are asked for that need the controller `{controller}`, which {} does not offer. Remedy: have it delegated \
         (with systemd, Delegate=yes), and on a host with version 1 groups boot with systemd.unified_cgroup_hierarchy=1; \
         or ask for no such limit", base.display()
    )]
    Controller { controller: &'static str, base: PathBuf },
    #[error("writing `{value}` to {}: are other processes in that group? A machine needs one to itself", path.display())]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error("making the control group {}: is a machine of this name running?", path.display())]
    Make { path: PathBuf, source: io::Error },
}

impl Cgroup {
    /// Makes the group of the machine called `name`; none where none is to be had and no limit is asked for.
    pub fn make(name: &str, limits: &Limits) -> Result<Option<Self>, CgroupError> {
        let made = match Place::find() {
            Ok(Place::Root(_)) if !limits.any() => return Ok(None),
            Ok(place) => Self::at(&place, name, limits),
            Err(why) => Err(CgroupError::NotDelegated(why)),
        };
        match made {
            Ok(group) => Ok(Some(group)),
            Err(error) if limits.any() => Err(error),
            Err(error) => {
                tracing::debug!("no control groups: {}", ipc::outcome::cause_chain(&error));
                Ok(None)
            }
        }
    }

    fn at(place: &Place, name: &str, limits: &Limits) -> Result<Self, CgroupError> {
        let (base, own) = match place {
            Place::Delegated(base) => (base.clone(), true),
            Place::Root(base) => (base.clone(), false),
        };
        let path = base.join(format!("bulkhead-{name}"));
        remove(&path);
        make(&path)?;
        // From here on dropping it undoes what was done.
        let device_memory = limits.device_memory;
        let mut group = Self { path, base, moved: false, switched_on: Vec::new(), device_memory };
        if own {
            let broker = group.child("broker")?;
            write(&broker, &std::process::id().to_string())?;
            group.moved = true;
        }
        group.switch_on(&limits.controllers())?;
        for (_, file, value) in limits.of_machine() {
            write(&group.path.join(file), &value)?;
        }
        Ok(group)
    }

    /// Has the groups below account for what they use. Controllers that are `needed` must be there.
    fn switch_on(&mut self, needed: &[&'static str]) -> Result<(), CgroupError> {
        let offered = words(&self.base.join("cgroup.controllers"));
        let on = words(&self.base.join("cgroup.subtree_control"));
        for controller in CONTROLLERS {
            let needed = needed.contains(&controller);
            if !offered.iter().any(|name| name == controller) {
                let base = self.base.clone();
                if needed {
                    return Err(CgroupError::Controller { controller, base });
                }
                continue;
            }
            let was_on = on.iter().any(|name| name == controller);
            let switch = format!("+{controller}");
            let switched = write(&self.base.join("cgroup.subtree_control"), &switch);
            if !was_on && switched.is_ok() {
                self.switched_on.push(controller);
            }
            let switched = switched.and_then(|()| write(&self.path.join("cgroup.subtree_control"), &switch));
            if needed {
                switched?;
            }
        }
        Ok(())
    }

    /// Makes the group of a process. Whose id is written to the file that this names is in it.
    pub fn child(&self, name: &str) -> Result<PathBuf, CgroupError> {
        let path = self.path.join(name);
        make(&path)?;
        Ok(path.join("cgroup.procs"))
    }

    /// The same for the process behind a device.
    pub fn device(&self, name: &str) -> Result<PathBuf, CgroupError> {
        let procs = self.child(name)?;
        if let Some(bytes) = self.device_memory {
            write(&procs.with_file_name("memory.max"), &bytes.to_string())?;
        }
        Ok(procs)
    }

    /// What the machine uses, or its process called `name`, with the limits that it has.
    pub fn usage(&self, name: Option<&str>) -> Value {
        let path = name.map_or(self.path.clone(), |name| self.path.join(name));
        let mut usage = Map::from_iter([("path".to_owned(), json!(path))]);
        for file in ["memory.current", "memory.max", "pids.current", "pids.max", "cpu.max", "cpu.weight"] {
            if let Ok(text) = fs::read_to_string(path.join(file)) {
                let text = text.trim();
                usage.insert(file.replace('.', "_"), text.parse::<u64>().map_or_else(|_| json!(text), |n| json!(n)));
            }
        }
        let stat = fs::read_to_string(path.join("cpu.stat")).unwrap_or_default();
        let used = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse::<u64>().ok());
        usage.extend(used.map(|used| ("cpu_usec".to_owned(), json!(used))));
        Value::Object(usage)
    }

    /// The kernel has ended the process called `name`, or one of its group, for want of memory.
    pub fn ran_out_of_memory(&self, name: &str) -> bool {
        let events = fs::read_to_string(self.path.join(name).join("memory.events")).unwrap_or_default();
        events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0"))
    }
}

impl Drop for Cgroup {
    /// The processes have ended, but for ourselves. What fails leaves an empty group, which harms nobody.
    fn drop(&mut self) {
        if self.moved {
            // A group that accounts for groups below takes no process.
            for controller in &self.switched_on {
                let _ = write(&self.path.join("cgroup.subtree_control"), &format!("-{controller}"));
                let _ = write(&self.base.join("cgroup.subtree_control"), &format!("-{controller}"));
            }
            let _ = write(&self.base.join("cgroup.procs"), &std::process::id().to_string());
        }
        remove(&self.path);
    }
}

/// Removes a machine's group and those below it, if they are there and empty.
fn remove(path: &Path) {
    let below = fs::read_dir(path).into_iter().flatten().flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    let all: Vec<PathBuf> = below.map(|entry| entry.path()).chain([path.into()]).collect();
    for group in all {
        for _ in 0..TRIES.0 {
            match fs::remove_dir(&group) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(TRIES.1),
                _ => break,
            }
        }
    }
}

fn make(path: &Path) -> Result<(), CgroupError> {
    fs::create_dir(path).map_err(|source| CgroupError::Make { path: path.into(), source })
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    // Never made: a file that is not there is a controller that is not.
    let written = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(|source| CgroupError::Write { path: path.into(), value: value.into(), source })
}

fn words(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}
