//! An empty, read-only file system as the only one.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use super::{Step, missing};
use crate::layer::Layer;

/// A directory that every host has, to mount on: whoever verifies needs /proc too.
const PLACE: &str = "/proc";

/// Leaves the host's mounts for one tmpfs that holds nothing and takes nothing.
pub fn empty() -> Step {
    let none = None::<&str>;
    let sealed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let step = |step, result: nix::Result<()>| result.map_err(|source| missing(Layer::EmptyRoot, step, source));
    // Nothing that happens here is to be seen outside, nor the other way round.
    step("making mounts private", mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))?;
    let options = Some("size=4k,nr_inodes=1,mode=0555");
    step("mounting a tmpfs", mount(Some("none"), PLACE, Some("tmpfs"), sealed, options))?;
    step("entering the tmpfs", chdir(Path::new(PLACE)))?;
    // pivot_root(2): with both the same, the old root ends up on top of the new one, and is detached from there.
    step("pivot_root(2)", pivot_root(".", "."))?;
    step("detaching the old root", umount2(".", MntFlags::MNT_DETACH))?;
    step("entering the new root", chdir(Path::new("/")))?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | sealed;
    step("making the root read-only", mount(none, "/", none, read_only, none))
}
