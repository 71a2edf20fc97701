//! UDP echo.

use std::time::Duration;
use tokio::net::UdpSocket;

/// Sends every datagram back to where it came from.
pub(crate) async fn echo(socket: UdpSocket) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, peer)) => {
                // A lost answer is what UDP promises.
                let _ = socket.send_to(&buffer[..length], peer).await;
            }
            // ICMP errors of earlier answers arrive here too.
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}
