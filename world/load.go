package world

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sort"
	"strings"
	"sync"
	"time"
)

// Load is a steady load on an app through the edge. Half of its clients keep their
// connections, half make a new one for each request.
type Load struct {
	w      *World
	token  string
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu     sync.Mutex
	result LoadResult
}

// LoadResult is what became of a load's requests.
type LoadResult struct {
	Clients  int
	Requests int
	// Broken are requests whose connection broke before they were answered. Each was
	// made once more, on a new connection.
	Broken int
	// BrokenNew are those of Broken that had a connection of their own.
	BrokenNew int
	// Lost are requests that got another answer than 200, or none also the second time.
	Lost    int
	Slowest time.Duration
	Why     map[string]int // of what broke or was lost
}

// String gives the counts in one line.
func (r LoadResult) String() string {
	var why []string
	for k, n := range r.Why {
		why = append(why, fmt.Sprintf("%d× %s", n, k))
	}
	sort.Strings(why)
	return fmt.Sprintf("%d requests of %d clients, %d broken, %d lost, the slowest took %v %s", r.Requests, r.Clients, r.Broken, r.Lost, r.Slowest.Round(time.Millisecond), strings.Join(why, "; "))
}

// loadLimit is how long a request may take before it counts as lost.
const loadLimit = 20 * time.Second

// Load begins a load of 4 clients that rest 5 ms between two requests. The app "api" is
// the API, which they ask with the platform's token.
func (w *World) Load(app, path string) *Load {
	ctx, cancel := context.WithCancel(context.Background())
	token := ""
	if app == "api" {
		token = w.Ready.Token
	}
	l := &Load{w: w, token: token, cancel: cancel, result: LoadResult{Clients: 4, Why: map[string]int{}}}
	for i := range l.result.Clients {
		l.done.Go(func() { l.client(ctx, w.URL(app, path), i%2 == 0) })
	}
	return l
}

// Stop ends the load after the requests under way and returns its counts.
func (l *Load) Stop() LoadResult {
	l.cancel()
	l.done.Wait()
	return l.Now()
}

// Now returns the counts so far.
func (l *Load) Now() LoadResult {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.result
	r.Why = map[string]int{}
	for k, n := range l.result.Why {
		r.Why[k] = n
	}
	return r
}

// client asks until ctx ends.
func (l *Load) client(ctx context.Context, url string, keep bool) {
	base := l.w.client.Transport.(*http.Transport)
	own := func(keep bool) *http.Client {
		t := base.Clone()
		t.DisableKeepAlives, t.ForceAttemptHTTP2 = !keep, false
		t.TLSClientConfig.NextProtos = []string{"http/1.1"}
		return &http.Client{Transport: t, Timeout: loadLimit, CheckRedirect: l.w.client.CheckRedirect}
	}
	client, fresh := own(keep), own(false)
	defer client.CloseIdleConnections()
	for ctx.Err() == nil {
		began := time.Now()
		status, err := ask(client, url, l.token)
		why, broken := "", err != nil
		if broken {
			why = reason(err)
			if status, err = ask(fresh, url, l.token); err != nil {
				why += ", and again " + reason(err)
			}
		}
		if status != http.StatusOK && err == nil {
			why = fmt.Sprintf("status %d", status)
		}
		l.note(time.Since(began), broken, !keep, status != http.StatusOK, why)
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (l *Load) note(took time.Duration, broken, fresh, lost bool, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.Requests++
	l.result.Slowest = max(l.result.Slowest, took)
	if broken {
		l.result.Broken++
		if fresh {
			l.result.BrokenNew++
		}
	}
	if lost {
		l.result.Lost++
	}
	if why != "" {
		l.result.Why[why]++
	}
}

// ask makes one request and reads its answer whole; status is 0 with an error.
func ask(c *http.Client, url, token string) (status int, err error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, err
	}
	return resp.StatusCode, nil
}

// reason is an error without the addresses in it, so that equal ones count together.
func reason(err error) string {
	s := err.Error()
	return s[strings.LastIndex(s, ": ")+max(0, min(2, len(s))):]
}
