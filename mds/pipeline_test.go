package mds

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestPipelineAfterRefusal: Raft takes no answer after one that was not a success, but may send a few requests more before it notices. They must
// fail: a goroutine that waited for somebody to take their answers kept the follower without entries, and the server from stopping. (Found
// by internal/sim.)
func TestPipelineAfterRefusal(t *testing.T) {
	for name, answer := range map[string]*raft.AppendEntriesResponse{
		"refused":        {Term: 3},
		"newer term":     {Term: 4, Success: true},
		"connection cut": nil,
	} {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe()
			go func() { // reads all, answers the first
				b := make([]byte, 64<<10)
				for answered := false; ; answered = true {
					if _, err := far.Read(b); err != nil {
						return
					}
					if answer == nil {
						far.Close()
					} else if !answered {
						if _, err := far.Write(appendAnswer(nil, answer, nil)); err != nil {
							return
						}
					}
				}
			}()
			tr := &transport{stable: func(uint64) error { return nil }}
			p := newAppendPipeline(tr, "mds2", near)
			send := func() error {
				_, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 3}, new(raft.AppendEntriesResponse))
				return err
			}
			if err := send(); err != nil {
				t.Fatal(err)
			}
			<-p.Consumer() // the last that Raft takes
			failed := make(chan error, 1)
			go func() {
				for range 3 {
					if err := send(); err != nil {
						failed <- err
						return
					}
				}
				failed <- nil
			}()
			select {
			case err := <-failed:
				if err == nil {
					t.Error("three requests were taken that nobody takes the answers of")
				} else if answer != nil && !errors.Is(err, raft.ErrPipelineShutdown) {
					t.Errorf("request failed with %v, want %v", err, raft.ErrPipelineShutdown)
				}
			case <-time.After(20 * time.Second):
				t.Error("a request waits for ever")
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			far.Close()
			tr.wg.Wait()
		})
	}
}
