//! Programs as filters of a `clsact` queueing discipline: for kernels before 6.6, which have no TCX.
//!
//! A filter is ours by its priority, handle and name together. Filters of smaller priorities come first: those that
//! asked for none get one from 49152 downwards, or one before the last, so that ours stays behind them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::programs::TcAttachType;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

const KIND: &str = "clsact";
const PRIORITY: u16 = 61_190;
const HANDLE: u32 = 1;
const NAME: &str = "egressnat_";
/// What the names of our filters end with in a queueing discipline that we made: with no pin left it is known by them.
const IN_OURS: &str = "+qdisc";

pub(super) const SIDES: [TcAttachType; 2] = [TcAttachType::Ingress, TcAttachType::Egress];

/// Bytes for one part of an answer: the kernel sends a dump in pieces of at most 32 KiB.
const BUFFER: usize = 1 << 16;

/// Who made a queueing discipline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Maker {
    Us,
    /// As far as is known.
    Others,
}

/// What an attachment found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) qdisc: Maker,
    /// The filter was not there before.
    pub(super) filter_made: bool,
}

/// Puts a program on one side of an interface, or in the place of ours that is there: a packet meets the old one or the new
/// one. `known` is who made the queueing discipline if it is there.
pub(super) fn attach(
    ifindex: u32,
    side: TcAttachType,
    program: BorrowedFd<'_>,
    name: &str,
    known: Maker,
) -> io::Result<Attached> {
    let qdisc = match add_qdisc(ifindex)? || known == Maker::Us {
        true => Maker::Us,
        false => maker(ifindex)?,
    };
    let end = match qdisc {
        Maker::Us => IN_OURS,
        Maker::Others => "",
    };
    let filters = filters(ifindex, side)?;
    let there = filters.iter().find(|filter| is_in_our_place(filter));
    if there.is_some_and(|filter| !is_ours(filter)) {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!(
                "a filter of somebody else has priority {PRIORITY} and handle {HANDLE}: remove it"
            ),
        ));
    }
    let mut message = filter(ifindex, side);
    message.attributes.extend([
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(
                program.as_raw_fd().cast_unsigned(),
            )),
            TcOption::Bpf(TcFilterBpfOption::ProgName(format!("{NAME}{name}{end}"))),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]),
    ]);
    let request = RouteNetlinkMessage::NewTrafficFilter(message);
    ask(request, NLM_F_ACK | NLM_F_CREATE)?;
    Ok(Attached {
        qdisc,
        filter_made: there.is_none(),
    })
}

/// The program of our filter on one side of an interface.
pub(super) fn attached(ifindex: u32, side: TcAttachType) -> io::Result<Option<u32>> {
    let filters = filters(ifindex, side)?;
    Ok(filters
        .iter()
        .filter(|filter| is_ours(filter))
        .find_map(|filter| {
            options(filter).find_map(|option| match option {
                TcFilterBpfOption::ProgId(id) => Some(*id),
                _ => None,
            })
        }))
}

/// Who made the queueing discipline of an interface, as our filters say that are in it.
pub(super) fn maker(ifindex: u32) -> io::Result<Maker> {
    let says_so = |option: &TcFilterBpfOption| matches!(option, TcFilterBpfOption::ProgName(name) if name.ends_with(IN_OURS));
    for side in SIDES {
        let filters = match filters(ifindex, side) {
            Err(error) if is_gone(&error) => Vec::new(),
            filters => filters?,
        };
        let mut ours = filters.iter().filter(|filter| is_ours(filter));
        if ours.any(|filter| options(filter).any(says_so)) {
            return Ok(Maker::Us);
        }
    }
    Ok(Maker::Others)
}

/// Takes our filter off one side of an interface, if it is there.
pub(super) fn detach(ifindex: u32, side: TcAttachType) -> io::Result<()> {
    match filters(ifindex, side) {
        Ok(filters) if filters.iter().any(is_ours) => {
            let message = filter(ifindex, side);
            ask(RouteNetlinkMessage::DelTrafficFilter(message), NLM_F_ACK)?;
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the queueing discipline of an interface unless somebody's filters are in it.
pub(super) fn remove_empty_qdisc(ifindex: u32) -> io::Result<()> {
    for side in SIDES {
        match filters(ifindex, side) {
            Ok(filters) if filters.is_empty() => {}
            Ok(_) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    let request = RouteNetlinkMessage::DelQueueDiscipline(qdisc(ifindex));
    match ask(request, NLM_F_ACK) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether it is about something that is not there any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)
    )
}

/// Returns whether it was not there before.
fn add_qdisc(ifindex: u32) -> io::Result<bool> {
    let request = RouteNetlinkMessage::NewQueueDiscipline(qdisc(ifindex));
    match ask(request, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

fn qdisc(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    message.attributes = vec![TcAttribute::Kind(KIND.to_owned())];
    message
}

/// The address of our filter: interface, side, priority, protocol and handle.
fn filter(ifindex: u32, side: TcAttachType) -> TcMessage {
    let mut message = on_side(ifindex, side);
    let all_protocols = (libc::ETH_P_ALL as u16).to_be();
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(all_protocols);
    message.header.handle = TcHandle::from(HANDLE);
    message
}

fn on_side(ifindex: u32, side: TcAttachType) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: match side {
            TcAttachType::Egress => TcHandle::MIN_EGRESS,
            _ => TcHandle::MIN_INGRESS,
        },
    };
    message
}

/// All filters on one side of an interface; a classifier without filters does not count.
fn filters(ifindex: u32, side: TcAttachType) -> io::Result<Vec<TcMessage>> {
    let request = RouteNetlinkMessage::GetTrafficFilter(on_side(ifindex, side));
    let answers = ask(request, NLM_F_DUMP)?.into_iter();
    let filters = answers.filter_map(|answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
        _ => None,
    });
    Ok(filters
        .filter(|filter| u32::from(filter.header.handle) != 0)
        .collect())
}

fn is_in_our_place(filter: &TcMessage) -> bool {
    filter.header.info >> 16 == u32::from(PRIORITY) && u32::from(filter.header.handle) == HANDLE
}

fn is_ours(filter: &TcMessage) -> bool {
    let is_our_name = |option: &TcFilterBpfOption| matches!(option, TcFilterBpfOption::ProgName(name) if name.starts_with(NAME));
    is_in_our_place(filter) && options(filter).any(is_our_name)
}

fn options(filter: &TcMessage) -> impl Iterator<Item = &TcFilterBpfOption> {
    let options = filter
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    options.flatten().filter_map(|option| match option {
        TcOption::Bpf(option) => Some(option),
        _ => None,
    })
}

/// Sends one request and gives the answers before the acknowledgment, or before the end of a dump.
fn ask(request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let length = (answer.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            match answer.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                _ => {}
            }
        }
    }
}
