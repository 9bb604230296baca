//! The command line, as the vhost-user back end conventions have it, with what a disk needs.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{ArgGroup, Parser};

use crate::disk::{Cache, Format};

/// Serves one disk image to a virtual machine monitor over vhost-user.
#[derive(Debug, Parser)]
#[command(name = "bulkhead-dev-blk", version)]
#[command(group = ArgGroup::new("socket").required(true).args(["socket_path", "fd", "print_capabilities", "confined"]))]
#[command(group = ArgGroup::new("image").args(["path", "disk_fd"]))]
pub struct Options {
    /// Listen for front ends on a socket at this path, one after the other
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,
    /// Serve one front end on this inherited, listening unix socket
    #[arg(long, value_name = "N")]
    pub fd: Option<RawFd>,
    /// Started by `bulkhead run`: sheds every right, then takes everything else from its control channel, descriptor 3
    #[arg(long, hide = true)]
    pub confined: bool,
    /// With --confined: go on without this layer of confinement
    #[arg(long, hide = true, value_name = "LAYER", requires = "confined")]
    pub allow_missing: Vec<policy::Layer>,
    /// Say what this back end can do, as JSON, and end
    #[arg(long)]
    pub print_capabilities: bool,
    /// The image: a file or a block device; it is locked
    #[arg(long, visible_alias = "blk-file", value_name = "PATH", required_unless_present_any = ["disk_fd", "print_capabilities", "confined"])]
    pub path: Option<PathBuf>,
    /// The image as an inherited descriptor; who opened it holds the lock
    #[arg(long, value_name = "N")]
    pub disk_fd: Option<RawFd>,
    /// The image's format; it is never guessed
    #[arg(long, value_enum, required_unless_present_any = ["print_capabilities", "confined"])]
    pub format: Option<Format>,
    /// How far a completed write has come
    #[arg(long, value_enum, default_value_t = Cache::Writeback)]
    pub cache: Cache,
    /// Open the backing file that a qcow2 image names, if it states that file's format; only with --path
    #[arg(long, requires = "path")]
    pub allow_backing: bool,
    /// Refuse writing
    #[arg(long)]
    pub read_only: bool,
    /// Serial number that the guest sees: up to 20 characters
    #[arg(long, default_value = "")]
    pub serial: String,
    /// Virtqueues, each with a thread
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub queues: u16,
    /// How many microseconds a worker waits for a next request before it sleeps
    #[arg(long, value_name = "US", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    pub spin: u64,
    /// Take commands (ping, resize), a line each, from this inherited socket and answer there
    #[arg(long, value_name = "N")]
    pub control_fd: Option<RawFd>,
    /// Log as JSON lines rather than text
    #[arg(long)]
    pub json: bool,
}
