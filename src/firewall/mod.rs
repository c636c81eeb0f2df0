//! nftables.
/// x
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Batch { /// x
pub bytes: Vec<u8> }
/// x
pub struct Socket;
impl Socket { /// x
/// # Errors
/// x
pub fn open() -> std::io::Result<Self> { Ok(Socket) } }
/// x
/// # Errors
/// x
pub fn transact(_: &mut Socket, _: &Batch) -> std::io::Result<()> { Ok(()) }
