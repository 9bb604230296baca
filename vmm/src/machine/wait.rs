//! How a halted processor waits for its devices: it looks at their rings for a while before it sleeps, since being woken
//! takes longer than most requests do.

use std::sync::Arc;
use std::time::Duration;

use ipc::spin::Spin;

use crate::virtio::VirtioPci;

/// How long it looks: what a request takes of which each side is woken by the other, on another processor.
const LIMIT: Duration = Duration::from_micros(100);

/// See the module.
#[derive(Debug)]
pub struct Wait(Spin);

impl Default for Wait {
    fn default() -> Self {
        Self(Spin::new(LIMIT))
    }
}

impl Wait {
    /// Looks until `awake`, or until a device has completed something. False if neither came: then it is time to sleep, and
    /// devices call.
    pub fn look(&mut self, devices: &[Arc<VirtioPci>], awake: impl Fn() -> bool) -> bool {
        if awake() {
            return true;
        }
        let completed = || devices.iter().any(|device| device.has_completed());
        // All of them: a call is a signal to this very thread.
        if devices.iter().filter(|device| device.decline_calls()).count() == 0 {
            devices.iter().for_each(|device| device.ask_calls());
            return false;
        }
        let found = self.0.wait(|| awake() || completed());
        devices.iter().for_each(|device| device.ask_calls());
        found || completed()
    }

    /// The processor was woken.
    pub fn woke(&mut self, devices: &[Arc<VirtioPci>]) {
        if devices.iter().any(|device| device.has_completed()) {
            self.0.woke();
        }
    }
}
