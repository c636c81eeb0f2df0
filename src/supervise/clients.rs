//! The clients of the control socket: each is heard once, then answered until either side ends.
//!
//! # Theory of operation
//!
//! A task for each client reads its request, makes an event of it, and sends on what the loop answers. How many are heard
//! and answered at the same time is bounded, since each costs a descriptor; one that wants the end of the stack is heard all
//! the same. What a client doesn't read is dropped ([`tell`]): the loop waits for none.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Ender, Event, shared};
use crate::control::{Reply, Request, evidence};
use crate::protocol::Channel;

/// How many clients of the control socket are answered at the same time: each costs a descriptor…
const CLIENTS: usize = 64;
/// …and how many more are heard, who are refused unless they want the end.
const MORE_CLIENTS: usize = 16;
/// How long a client may take to say what it wants.
const ASKS_WITHIN: Duration = Duration::from_secs(10);
/// How many answers may wait for a client to read them.
const ANSWERS_WAITING: usize = 512;
/// How long is waited when there is no descriptor left for a client.
const ACCEPTS_AGAIN: Duration = Duration::from_millis(100);

/// Who asked, and how to answer. When it is dropped the conversation ends.
pub(super) type Client = mpsc::Sender<Answer>;

/// What a client gets at once.
pub(super) struct Answer {
    pub(super) replies: Vec<Reply>,
    pub(super) fd: Option<OwnedFd>,
    /// Dropped when they are sent.
    pub(super) sent: Option<oneshot::Sender<()>>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self {
            replies: vec![reply],
            fd: None,
            sent: None,
        }
    }
}

/// A reply, and a descriptor with it.
impl From<(Reply, Option<OwnedFd>)> for Answer {
    fn from((reply, fd): (Reply, Option<OwnedFd>)) -> Self {
        Self {
            fd,
            ..Self::from(reply)
        }
    }
}

/// Answers. A client that has gone, or doesn't read, goes without.
pub(super) fn tell(client: &Client, answer: impl Into<Answer>) {
    let _ = client.try_send(answer.into());
}

/// Tells everybody who waits.
pub(super) fn tell_all(clients: &[Client], text: &str) {
    for client in clients {
        tell(client, Reply::Waits(text.to_owned()));
    }
}

pub(super) fn refused(why: String, hint: Option<String>) -> Reply {
    let configuration = false;
    Reply::Refused {
        why,
        hint,
        configuration,
    }
}

/// Answers the control socket.
pub(super) fn serve(
    listener: std::os::unix::net::UnixListener,
    events: mpsc::UnboundedSender<Event>,
    ender: Ender,
    offer: shared::Offer,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let own_uid = nix::unistd::geteuid().as_raw();
    let heard = Arc::new(Semaphore::new(CLIENTS + MORE_CLIENTS));
    let answered = Arc::new(Semaphore::new(CLIENTS));
    tokio::spawn(async move {
        // An error is one client's (ECONNABORTED) or passes (EMFILE) when a client ends.
        while let Ok(turn) = Arc::clone(&heard).acquire_owned().await {
            let Ok((client, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPTS_AGAIN).await;
                continue;
            };
            let uid = client.peer_cred().map(|cred| cred.uid());
            if uid.is_ok_and(|uid| uid == own_uid || uid == 0) {
                let (answered, events) = (Arc::clone(&answered), events.clone());
                let conversation = converse(client, answered, events, ender.clone(), offer.clone());
                tokio::spawn(async move {
                    conversation.await;
                    drop(turn);
                });
            }
        }
    });
    Ok(())
}

/// One client: a request, then replies until either side ends.
async fn converse(
    client: tokio::net::UnixStream,
    answered: Arc<Semaphore>,
    events: mpsc::UnboundedSender<Event>,
    ender: Ender,
    offer: shared::Offer,
) {
    let peer = client.peer_cred();
    let Ok(Ok(mut channel)) = client
        .into_std()
        .map(|client| Channel::new(OwnedFd::from(client)))
    else {
        return;
    };
    let asked = tokio::time::timeout(ASKS_WITHIN, channel.receive::<Request>());
    let Ok(Ok(Some((request, fds)))) = asked.await else {
        return;
    };
    if matches!(request, Request::HostTable | Request::HostRules) {
        let at_link = matches!(request, Request::HostRules);
        let _ = tokio::time::timeout(ASKS_WITHIN, offer.answer(&channel, at_link)).await;
        return;
    }
    if matches!(request, Request::Down | Request::Kill) {
        let by = peer.map(|peer| evidence::asker(peer.uid(), peer.pid()));
        let _ = by.map(|by| ender.get_or_init(|| by));
    }
    let turn = answered.try_acquire();
    if turn.is_err() && !matches!(request, Request::Down) {
        let why = format!("{CLIENTS} other commands are being answered");
        let hint =
            "end some of them: `lrpns logs`, `lrpns restart` and `lrpns apply` may wait long";
        let refused = refused(why, Some(hint.to_owned()));
        let _ = tokio::time::timeout(ASKS_WITHIN, channel.send(&refused, &[])).await;
        return;
    }
    let request = match request {
        Request::Apply(apply) => {
            let _ = events.send(Event::Apply(apply, fds, channel));
            return;
        }
        request => request,
    };
    let (answers, mut to_send) = mpsc::channel::<Answer>(ANSWERS_WAITING);
    if events.send(Event::Asked(request, fds, answers)).is_err() {
        return;
    }
    loop {
        tokio::select! {
            answer = to_send.recv() => {
                let Some(Answer { replies, fd, sent }) = answer else { return };
                let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
                for (index, reply) in replies.iter().enumerate() {
                    let fds = if index == 0 { fds.as_slice() } else { &[] };
                    if channel.send(reply, fds).await.is_err() {
                        return;
                    }
                }
                drop(sent);
            }
            // A client says nothing more; its end is all there is to hear.
            _ = channel.receive::<Request>() => return,
        }
    }
}
