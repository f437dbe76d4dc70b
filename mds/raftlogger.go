package mds

import (
	"context"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLogger sends what Raft logs to slog, one level lower than Raft has it: the server logs its own state transitions.
type raftLogger struct {
	log  *slog.Logger
	name string
	args []any
}

var _ hclog.Logger = (*raftLogger)(nil)

func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Error:
		return slog.LevelWarn
	case hclog.Warn:
		return slog.LevelDebug
	default:
		return slog.LevelDebug - 4
	}
}

func (r *raftLogger) Log(l hclog.Level, text string, args ...any) {
	ctx := context.Background()
	if !r.log.Enabled(ctx, slogLevel(l)) {
		return
	}
	all := append([]any{"raft", text}, r.args...)
	r.log.Log(ctx, slogLevel(l), "raft reports", append(all, args...)...)
}

func (r *raftLogger) Trace(text string, args ...any) { r.Log(hclog.Trace, text, args...) }
func (r *raftLogger) Debug(text string, args ...any) { r.Log(hclog.Debug, text, args...) }
func (r *raftLogger) Info(text string, args ...any)  { r.Log(hclog.Info, text, args...) }
func (r *raftLogger) Warn(text string, args ...any)  { r.Log(hclog.Warn, text, args...) }
func (r *raftLogger) Error(text string, args ...any) { r.Log(hclog.Error, text, args...) }

func (r *raftLogger) enabled(l hclog.Level) bool {
	return r.log.Enabled(context.Background(), slogLevel(l))
}
func (r *raftLogger) IsTrace() bool { return r.enabled(hclog.Trace) }
func (r *raftLogger) IsDebug() bool { return r.enabled(hclog.Debug) }
func (r *raftLogger) IsInfo() bool  { return r.enabled(hclog.Info) }
func (r *raftLogger) IsWarn() bool  { return r.enabled(hclog.Warn) }
func (r *raftLogger) IsError() bool { return r.enabled(hclog.Error) }

func (r *raftLogger) ImpliedArgs() []any { return r.args }
func (r *raftLogger) With(args ...any) hclog.Logger {
	return &raftLogger{log: r.log, name: r.name, args: append(append([]any{}, r.args...), args...)}
}
func (r *raftLogger) Name() string { return r.name }
func (r *raftLogger) Named(name string) hclog.Logger {
	return &raftLogger{log: r.log, name: name, args: r.args}
}
func (r *raftLogger) ResetNamed(name string) hclog.Logger { return r.Named(name) }
func (r *raftLogger) SetLevel(hclog.Level)                {}
func (r *raftLogger) GetLevel() hclog.Level               { return hclog.Debug }
func (r *raftLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(r.StandardWriter(nil), "", 0)
}
func (r *raftLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return logWriter{r} }

type logWriter struct{ r *raftLogger }

func (w logWriter) Write(b []byte) (int, error) {
	w.r.Debug(string(b))
	return len(b), nil
}
