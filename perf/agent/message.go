package agent

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"varve/perf"
)

// Protocol is the version of the messages.
const Protocol = 1

const (
	helloMagic = `{"varve_perf_agent":`
	maxLine    = 64 << 20 // of a message
	maxNoise   = 64 << 10 // that a login shell may print before an agent's hello
	maxQueue   = 4096     // messages that wait to be sent
)

// Silence is how long a side that says nothing is waited for. Each says something every second.
const Silence = 15 * time.Second

// message is one of its fields.
type message struct {
	Agent   int           `json:"varve_perf_agent,omitempty"` // an agent's protocol, with Hello
	Hello   *hello        `json:"hello,omitempty"`            // of both sides, first
	Ping    int           `json:"ping,omitempty"`             // asks for a Pong with its number
	Pong    *pong         `json:"pong,omitempty"`
	Prepare *perf.Options `json:"prepare,omitempty"` // open and lay out
	Ready   bool          `json:"ready,omitempty"`   // it is
	Start   time.Duration `json:"start_ns,omitempty"`
	Stop    string        `json:"stop,omitempty"` // stopCancel or stopEnough
	Alive   bool          `json:"alive,omitempty"`
	Second  *perf.Sample  `json:"second,omitempty"` // of the load under way
	Final   *perf.Sample  `json:"final,omitempty"`  // one of all seconds, when it has ended
	Result  *result       `json:"result,omitempty"` // after the last Final
	Error   string        `json:"error,omitempty"`  // instead of Ready, or of Hello
}

const (
	stopCancel = "cancel"
	stopEnough = "enough"
)

type hello struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"`
	Host     string `json:"host,omitempty"`
}

// pong says what the clocks of an agent show.
type pong struct {
	N    int           `json:"n"`
	At   time.Duration `json:"at_ns"` // since the agent began
	Wall time.Time     `json:"wall"`
}

type result struct {
	*perf.Result
	Late time.Duration `json:"late_ns"` // by how much it began after the moment that it was told
}

// differs says why this host cannot work with another, nil if it can.
func (h *hello) differs(from hello) error {
	switch {
	case h.Protocol != from.Protocol:
		return fmt.Errorf("it speaks version %d of the agents' protocol, this host version %d: both need the same release of varve", from.Protocol, h.Protocol)
	case h.Version != from.Version:
		return fmt.Errorf("it is varve %s, this host has %s: both need the same release", from.Version, h.Version)
	}
	return nil
}

// errSlow ends a connection whose other side does not take what is sent.
var errSlow = errors.New("the other side takes nothing")

// conn sends and receives messages. send may be called by several goroutines at once and does not wait.
type conn struct {
	rwc    io.ReadWriteCloser
	in     *bufio.Reader
	out    chan *message
	closed chan struct{}
	once   sync.Once
	writer sync.WaitGroup

	mu  sync.Mutex
	err error // of the writer
}

func newConn(rwc io.ReadWriteCloser) *conn {
	c := &conn{rwc: rwc, in: bufio.NewReaderSize(rwc, 64<<10), out: make(chan *message, maxQueue), closed: make(chan struct{})}
	c.writer.Go(c.write)
	return c
}

func (c *conn) write() {
	w := bufio.NewWriter(c.rwc)
	enc := json.NewEncoder(w)
	for {
		select {
		case m := <-c.out:
			err := enc.Encode(m)
			if err == nil && len(c.out) == 0 {
				err = w.Flush()
			}
			if err != nil {
				c.mu.Lock()
				c.err = err
				c.mu.Unlock()
				return
			}
		case <-c.closed:
			return
		}
	}
}

// drain waits until what was sent is on its way, at most so long.
func (c *conn) drain(most time.Duration) {
	for end := time.Now().Add(most); len(c.out) > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(10 * time.Millisecond) // of the last one
}

func (c *conn) send(m *message) error {
	c.mu.Lock()
	err := c.err
	c.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case c.out <- m:
		return nil
	default:
		return errSlow
	}
}

// receive returns the next message.
func (c *conn) receive() (*message, error) {
	line, err := c.line(maxLine)
	if err != nil {
		return nil, err
	}
	m := new(message)
	if err := json.Unmarshal(line, m); err != nil {
		return nil, fmt.Errorf("what is no message: %w", err)
	}
	return m, nil
}

// receiveHello returns the first message of an agent, after what a shell may print before it.
func (c *conn) receiveHello() (*message, error) {
	noise := 0
	for {
		line, err := c.line(maxNoise)
		if err != nil {
			return nil, err
		}
		if bytes.HasPrefix(line, []byte(helloMagic)) {
			m := new(message)
			if err := json.Unmarshal(line, m); err != nil || m.Hello == nil {
				return nil, errors.New("an agent that says no hello")
			}
			return m, nil
		}
		if noise += len(line) + 1; noise > maxNoise {
			return nil, errors.New("it is no agent: it prints other things")
		}
	}
}

func (c *conn) line(most int) ([]byte, error) {
	var line []byte
	for {
		part, err := c.in.ReadSlice('\n')
		if len(line)+len(part) > most {
			return nil, fmt.Errorf("a line of more than %d bytes", most)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

func (c *conn) close() error {
	var err error
	c.once.Do(func() {
		close(c.closed)
		err = c.rwc.Close()
	})
	c.writer.Wait()
	return err
}
