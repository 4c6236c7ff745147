// For each HOST PORT: what Go's dialler says, and both names of the connection. Static, with a resolver of its own.
package main

import (
	"fmt"
	"net"
	"os"
)

func main() {
	for at := 1; at+1 < len(os.Args); at += 2 {
		conn, err := net.Dial("tcp", net.JoinHostPort(os.Args[at], os.Args[at+1]))
		if err != nil {
			fmt.Println(os.Args[at], err)
			continue
		}
		own, _, _ := net.SplitHostPort(conn.LocalAddr().String())
		fmt.Println(os.Args[at], "connected", conn.RemoteAddr(), own)
		conn.Close()
	}
}
