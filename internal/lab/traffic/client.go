package traffic

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
)

// DialFunc connects: lab.NS.DialContext, or net.Dialer.DialContext of a process that
// is inside a namespace.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Client talks to the servers of this package and checks what they answer. Each call
// is bounded by its context and makes a connection of its own.
type Client struct {
	Dial DialFunc // nil: the process's own network
}

func (c Client) dial(ctx context.Context, address string) (net.Conn, error) {
	dial := c.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return dial(ctx, "tcp", address)
}

// HTTP returns an http.Client that uses the client's dialler. keepAlive says whether
// connections are used again; call CloseIdleConnections at the end.
func (c Client) HTTP(keepAlive bool) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, address string) (net.Conn, error) { return c.dial(ctx, address) },
		DisableKeepAlives:  !keepAlive,
		DisableCompression: true,
	}}
}

// Whoami asks the origin at address ("address:port") what it sees.
func (c Client) Whoami(ctx context.Context, address string) (Whoami, error) {
	var who Whoami
	err := c.roundTrip(ctx, "GET", address, "/whoami", nil, func(r *http.Response) error {
		return json.NewDecoder(r.Body).Decode(&who)
	})
	return who, err
}

// Bytes fetches n bytes from the origin and checks each of them and their sum.
// chunked asks for a chunked response with the sum in the trailer.
func (c Client) Bytes(ctx context.Context, address string, n int64, chunked bool) error {
	path := "/bytes/" + strconv.FormatInt(n, 10)
	if chunked {
		path += "?chunked=1"
	}
	return c.roundTrip(ctx, "GET", address, path, nil, func(r *http.Response) error {
		return checkBody(r, n)
	})
}

// Echo sends n bytes to the origin's /echo and checks that they come back.
func (c Client) Echo(ctx context.Context, address string, n int64) error {
	body := io.LimitReader(NewPattern(Seed), n)
	return c.roundTrip(ctx, "POST", address, "/echo", body, func(r *http.Response) error {
		return checkBody(r, n)
	})
}

// Upload sends n bytes to the origin's /sum and checks what arrived.
func (c Client) Upload(ctx context.Context, address string, n int64) error {
	body := io.LimitReader(NewPattern(Seed), n)
	return c.roundTrip(ctx, "POST", address, "/sum", body, func(r *http.Response) error {
		var got Received
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			return err
		}
		if want := (Received{n, Sum(Seed, n)}); got != want {
			return fmt.Errorf("sent %v, the origin got %v", want, got)
		}
		return nil
	})
}

func (c Client) roundTrip(ctx context.Context, method, address, path string, body io.Reader, use func(*http.Response) error) error {
	url := "http://" + address + path
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, url, err)
	}
	client := c.HTTP(false)
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return err // says method and URL
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: status %s", method, url, resp.Status)
	}
	if err := use(resp); err != nil {
		return fmt.Errorf("%s %s: %w", method, url, err)
	}
	return nil
}

// checkBody compares a response with n pattern bytes and the sum it came with.
func checkBody(r *http.Response, n int64) error {
	check, h := NewChecker(Seed), sha256.New()
	if _, err := io.Copy(io.MultiWriter(check, h), r.Body); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", check.Checked(), n, err)
	}
	if check.Checked() != n {
		return fmt.Errorf("got %d bytes, want %d", check.Checked(), n)
	}
	sum := r.Header.Get(SumHeader)
	if sum == "" {
		sum = r.Trailer.Get(SumHeader)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return fmt.Errorf("sum of the body is %s, header or trailer says %q", got, sum)
	}
	return nil
}

// TCPEcho sends n bytes to a TCPServer's echo, closes its side, and checks that they
// come back, and then the end.
func (c Client) TCPEcho(ctx context.Context, address string, n int64) error {
	return c.tcp(ctx, address, "echo", func(conn net.Conn) error {
		sent := make(chan error, 1)
		go func() {
			_, err := io.CopyN(conn, NewPattern(Seed), n)
			if err == nil {
				err = closeWrite(conn)
			}
			sent <- err
		}()
		err := readPattern(conn, n)
		if err != nil {
			conn.Close() // ends the sender
		}
		return errors.Join(err, <-sent)
	})
}

// TCPDiscard sends n bytes, closes its side, and checks what the server says it got.
func (c Client) TCPDiscard(ctx context.Context, address string, n int64) error {
	return c.tcp(ctx, address, "discard", func(conn net.Conn) error {
		if _, err := io.CopyN(conn, NewPattern(Seed), n); err != nil {
			return err
		}
		if err := closeWrite(conn); err != nil {
			return err
		}
		got, err := io.ReadAll(io.LimitReader(conn, 1024))
		if err != nil {
			return err
		}
		if want := fmt.Sprintf("%d %s\n", n, Sum(Seed, n)); string(got) != want {
			return fmt.Errorf("sent %q, the server got %q", want, got)
		}
		return nil
	})
}

// TCPSource reads n bytes to the server's end and checks them. Its own side is open
// for so long (the server's half-close), and closed after.
func (c Client) TCPSource(ctx context.Context, address string, n int64) error {
	return c.tcp(ctx, address, fmt.Sprintf("source %d", n), func(conn net.Conn) error {
		return readPattern(conn, n)
	})
}

// TCPWhoami returns the addresses that the server sees of this connection.
func (c Client) TCPWhoami(ctx context.Context, address string) (peer, local string, err error) {
	err = c.tcp(ctx, address, "whoami", func(conn net.Conn) error {
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			return err
		}
		var ok bool
		if peer, local, ok = strings.Cut(strings.TrimSpace(line), " "); !ok {
			return fmt.Errorf("got %q, want two addresses", line)
		}
		return nil
	})
	return peer, local, err
}

// TCPReset checks that a server's RST arrives as one, after all n bytes before it.
func (c Client) TCPReset(ctx context.Context, address string, n int64) error {
	return c.tcp(ctx, address, fmt.Sprintf("reset %d", n), func(conn net.Conn) error {
		check := NewChecker(Seed)
		if _, err := io.CopyN(check, conn, n); err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", check.Checked(), n, err)
		}
		if _, err := conn.Write([]byte{'.'}); err != nil {
			return err
		}
		got, err := conn.Read(make([]byte, 1))
		if !errors.Is(err, syscall.ECONNRESET) {
			return fmt.Errorf("after %d bytes: read %d bytes, %v; want a reset", n, got, err)
		}
		return nil
	})
}

// tcp connects, sends the command line and runs use, which ctx can interrupt.
func (c Client) tcp(ctx context.Context, address, command string, use func(net.Conn) error) error {
	conn, err := c.dial(ctx, address)
	if err != nil {
		return fmt.Errorf("tcp %s: %w", command, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { reset(conn) })
	defer stop()
	if _, err = io.WriteString(conn, command+"\n"); err == nil {
		err = use(conn)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return fmt.Errorf("tcp %s with %s: %w", command, address, err)
	}
	return nil
}

// readPattern reads to the end and checks that there are n bytes, the right ones.
func readPattern(conn net.Conn, n int64) error {
	check := NewChecker(Seed)
	if _, err := io.CopyBuffer(check, onlyReader{conn}, make([]byte, copySize)); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", check.Checked(), n, err)
	}
	if check.Checked() != n {
		return fmt.Errorf("the stream ended after %d of %d bytes", check.Checked(), n)
	}
	return nil
}
