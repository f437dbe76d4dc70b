package mds

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestRequestContext ends a request's context in each of its ways, looked at before and after somebody waited for it.
func TestRequestContext(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(conn, l, x context.CancelFunc, c *requestContext)
		want error
	}{
		{"connection", func(conn, _, _ context.CancelFunc, _ *requestContext) { conn() }, context.Canceled},
		{"leadership", func(_, l, _ context.CancelFunc, _ *requestContext) { l() }, context.Canceled},
		{"session", func(_, _, x context.CancelFunc, _ *requestContext) { x() }, context.Canceled},
		{"time", func(_, _, _ context.CancelFunc, c *requestContext) {}, context.DeadlineExceeded},
		{"end", func(_, _, _ context.CancelFunc, c *requestContext) { c.end() }, context.Canceled},
	} {
		for _, waited := range []bool{false, true} {
			conn, endConn := context.WithCancel(context.Background())
			lead, endLead := context.WithCancel(context.Background())
			sess, endSess := context.WithCancel(lead)
			timeout := time.Minute
			if tc.name == "time" {
				timeout = 20 * time.Millisecond
			}
			l := &leadership{s: &Server{o: Options{RequestTimeout: timeout}}, ctx: lead}
			c := l.requestContext(conn, &session{ctx: sess})
			var child context.Context
			if waited {
				var cancel context.CancelFunc
				child, cancel = context.WithCancel(c)
				defer cancel()
				select {
				case <-c.Done():
					if tc.name != "time" {
						t.Fatalf("%s: ended at once", tc.name)
					}
				default:
				}
			}
			if err := c.Err(); err != nil && tc.name != "time" {
				t.Fatalf("%s, waited %v: %v at once", tc.name, waited, err)
			}
			tc.end(endConn, endLead, endSess, c)
			for deadline := time.Now().Add(10 * time.Second); c.Err() == nil && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond)
			}
			if err := c.Err(); !errors.Is(err, tc.want) {
				t.Errorf("%s, waited %v: %v, want %v", tc.name, waited, err, tc.want)
			}
			select {
			case <-c.Done():
			case <-time.After(10 * time.Second):
				t.Errorf("%s, waited %v: Done is open", tc.name, waited)
			}
			if child != nil {
				<-child.Done()
			}
			if tc.name == "time" && !errors.Is(context.Cause(c), errRequestTime) {
				t.Errorf("cause %v", context.Cause(c))
			}
			c.end()
			endConn()
			endLead()
			endSess()
		}
	}
}
