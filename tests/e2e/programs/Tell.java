// For each HOST PORT: what Java's sockets say, blocking and by a selector, and both names of the connection.
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;
import java.nio.channels.UnresolvedAddressException;

class Tell {
    public static void main(String[] word) throws Exception {
        for (int at = 0; at + 1 < word.length; at += 2) {
            InetSocketAddress there = new InetSocketAddress(word[at], Integer.parseInt(word[at + 1]));
            try (Socket socket = new Socket()) {
                socket.connect(there, 20000);
                System.out.println(there + " connected " + socket.getRemoteSocketAddress() + " "
                        + socket.getLocalAddress().getHostAddress());
            } catch (IOException | UnresolvedAddressException error) {
                System.out.println(there + " " + error);
            }
            try (SocketChannel channel = SocketChannel.open(); Selector selector = Selector.open()) {
                channel.configureBlocking(false);
                channel.connect(there);
                channel.register(selector, SelectionKey.OP_CONNECT);
                selector.select(20000);
                channel.finishConnect();
                System.out.println(there + " connected " + channel.getRemoteAddress() + " "
                        + ((InetSocketAddress) channel.getLocalAddress()).getAddress().getHostAddress());
            } catch (IOException | UnresolvedAddressException error) {
                System.out.println(there + " " + error);
            }
        }
    }
}
