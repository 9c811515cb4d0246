//! Programs at netfilter's hooks.
//!
//! By the system call itself: aya knows neither this type of program nor links of it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya_obj::generated::bpf_insn;

use crate::family::Family;

/// Commands of `bpf(2)`, and what they are told (`linux/bpf.h`).
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const LINK_DETACH: libc::c_long = 34;
const PROG_TYPE_NETFILTER: u32 = 32;
const ATTACH_TYPE_NETFILTER: u32 = 45;

/// `NF_INET_POST_ROUTING` (`linux/netfilter.h`).
const POSTROUTING: u32 = 4;
/// Behind everything that may drop a packet. The kernel keeps the last place of all to itself, and each place to one program.
const PRIORITY: i32 = i32::MAX - 1;

/// Loads a program. The kernel takes 15 bytes of its name.
pub(super) fn load(name: &str, license: &CStr, instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        program_type: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        ifindex: u32,
        attach_type: u32,
    }
    let mut attributes = Attributes {
        program_type: PROG_TYPE_NETFILTER,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        attach_type: ATTACH_TYPE_NETFILTER,
        ..Attributes::default()
    };
    let last = attributes.name.len() - 1;
    for (to, from) in attributes.name[..last].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: instructions and license are there until the call ends.
    unsafe { open(PROG_LOAD, &mut attributes) }
}

/// Puts a program at the postrouting hook of this thread's network namespace. It is there until the link is closed and unpinned.
///
/// # Errors
///
/// `EBUSY`: there is a program in that place.
pub(super) fn attach(program: BorrowedFd<'_>, family: Family) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        family: u32,
        hook: u32,
        priority: i32,
        hook_flags: u32,
    }
    let mut attributes = Attributes {
        program: number(program),
        target: 0,
        attach_type: ATTACH_TYPE_NETFILTER,
        flags: 0,
        family: match family {
            Family::Ipv4 => libc::NFPROTO_IPV4 as u32,
            Family::Ipv6 => libc::NFPROTO_IPV6 as u32,
        },
        hook: POSTROUTING,
        priority: PRIORITY,
        hook_flags: 0,
    };
    // SAFETY: the attributes point to nothing.
    unsafe { open(LINK_CREATE, &mut attributes) }
}

/// Takes a link's program off its hook, at once: closing the last file descriptor does so a little later.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = number(link);
    // SAFETY: the attributes point to nothing.
    unsafe { call(LINK_DETACH, &mut attributes) }.map(drop)
}

/// The attributes of commands about a pin.
#[repr(C)]
#[derive(Default)]
struct PinAttributes {
    path: u64,
    object: u32,
    flags: u32,
}

/// Pins a program or a link.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PinAttributes {
        path: path.as_ptr() as u64,
        object: number(object),
        ..PinAttributes::default()
    };
    // SAFETY: the path is there until the call ends.
    unsafe { call(OBJ_PIN, &mut attributes) }.map(drop)
}

/// Opens what is pinned.
pub(super) fn from_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PinAttributes {
        path: path.as_ptr() as u64,
        ..PinAttributes::default()
    };
    // SAFETY: the path is there until the call ends.
    unsafe { open(OBJ_GET, &mut attributes) }
}

/// The id of a program.
pub(super) fn id(program: BorrowedFd<'_>) -> io::Result<u32> {
    /// The beginning of `struct bpf_prog_info`: the kernel writes as much as there is room for.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        program_type: u32,
        id: u32,
    }
    #[repr(C)]
    struct Attributes {
        program: u32,
        size: u32,
        info: u64,
    }
    let mut info = Info::default();
    let mut attributes = Attributes {
        program: number(program),
        size: size_of::<Info>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: `info` is as large as is said, and there until the call ends.
    unsafe { call(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info.id)
}

/// The attributes of commands about an entry of a map.
#[repr(C)]
struct EntryAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Has the first place of an array of programs lead to a program.
pub(super) fn lead_to(array: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (key, value) = (0u32, number(program));
    let mut attributes = EntryAttributes {
        map: number(array),
        padding: 0,
        key: &raw const key as u64,
        value: &raw const value as u64,
        flags: 0,
    };
    // SAFETY: key and value are of an array of programs, and there until the call ends.
    unsafe { call(MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// The id of the program that the first place of an array leads to.
pub(super) fn leads_to(array: BorrowedFd<'_>) -> io::Result<u32> {
    let (key, mut value) = (0u32, 0u32);
    let mut attributes = EntryAttributes {
        map: number(array),
        padding: 0,
        key: &raw const key as u64,
        value: &raw mut value as u64,
        flags: 0,
    };
    // SAFETY: key and value are of an array of programs, and there until the call ends.
    unsafe { call(MAP_LOOKUP_ELEM, &mut attributes) }?;
    Ok(value)
}

/// As attributes have file descriptors.
fn number(file: BorrowedFd<'_>) -> u32 {
    file.as_fd().as_raw_fd().cast_unsigned()
}

/// # Safety
///
/// `command` takes `attributes`, and what they point to is there until the call ends.
unsafe fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_int> {
    let (attributes, size) = (&raw mut *attributes, size_of::<T>());
    // SAFETY: as the caller promises; the attributes are as large as we say.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    match result {
        0.. => Ok(result as libc::c_int),
        _ => Err(io::Error::last_os_error()),
    }
}

/// # Safety
///
/// As [`call`], and the command gives a new file descriptor.
unsafe fn open<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: as the caller promises: the file descriptor is new, so nobody else has it.
    unsafe { call(command, attributes).map(|file| OwnedFd::from_raw_fd(file)) }
}
