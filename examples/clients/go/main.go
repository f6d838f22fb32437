// Gets, keeps and renews access tokens from ATM by client credentials (RFC 6749 section 4.4), with the standard library alone.
//
//	ATM_ISSUER=https://id.example.com ATM_CLIENT_ID=... ATM_CLIENT_SECRET_FILE=... \
//	    go run . orders-api orders.read https://api.example.com/orders
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// TokenError says that the issuer gave no token: Code is its OAuth error, Retry whether asking again can help.
type TokenError struct {
	Code, Description string
	Retry             bool
}

func (e *TokenError) Error() string { return strings.TrimSuffix(e.Code+": "+e.Description, ": ") }

// TokenSource holds one token for one audience and scope. It is renewed when four fifths of its life are over; while the
// issuer is away the old one is used until it ends.
type TokenSource struct {
	Issuer, ClientID, ClientSecret, Audience, Scope string
	Client                                          *http.Client

	mutex          sync.Mutex
	endpoint       string
	token          string
	renewAt, endAt time.Time
}

// Token returns a token that is valid now.
func (s *TokenSource) Token(ctx context.Context) (string, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	now := time.Now()
	if s.token != "" && now.Before(s.renewAt) {
		return s.token, nil
	}
	if err := s.renew(ctx, now); err != nil {
		var refused *TokenError
		retry := errors.As(err, &refused) && refused.Retry
		if !retry || s.token == "" || !now.Before(s.endAt) {
			return "", err
		}
		s.renewAt = now.Add(time.Second) // the old one is still good; ask again soon
	}
	return s.token, nil
}

// Refused forgets token after a 401 with error="invalid_token": it may have been revoked.
func (s *TokenSource) Refused(token string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.token == token {
		s.token = ""
	}
}

func (s *TokenSource) renew(ctx context.Context, now time.Time) error {
	if s.endpoint == "" {
		if err := s.discover(ctx); err != nil {
			return err
		}
	}
	form := url.Values{"grant_type": {"client_credentials"}, "audience": {s.Audience}, "scope": {s.Scope}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	// RFC 6749 section 2.3.1: both parts are form-encoded before they are joined.
	request.SetBasicAuth(url.QueryEscape(s.ClientID), url.QueryEscape(s.ClientSecret))
	var answer struct {
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"`
	}
	if err := s.fetch(request, &answer); err != nil {
		return err
	}
	life := time.Duration(answer.ExpiresIn * float64(time.Second))
	if life <= 0 {
		life = time.Minute
	}
	s.token = answer.AccessToken
	s.endAt = now.Add(life - time.Second)
	s.renewAt = now.Add(time.Duration(float64(life) * (0.7 + 0.15*rand.Float64())))
	return nil
}

func (s *TokenSource) discover(ctx context.Context) error {
	issuer, err := url.Parse(s.Issuer)
	if err != nil {
		return err
	}
	// RFC 8414 section 3: the well-known part goes before the issuer's path.
	metadataURL := *issuer
	metadataURL.Path = "/.well-known/oauth-authorization-server" + strings.TrimSuffix(issuer.Path, "/")
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, metadataURL.String(), nil)
	if err != nil {
		return err
	}
	var metadata struct {
		Issuer        string `json:"issuer"`
		TokenEndpoint string `json:"token_endpoint"`
	}
	if err := s.fetch(request, &metadata); err != nil {
		return err
	}
	if metadata.Issuer != s.Issuer {
		return &TokenError{Code: "wrong_issuer", Description: s.Issuer + " calls itself " + metadata.Issuer}
	}
	s.endpoint = metadata.TokenEndpoint
	return nil
}

func (s *TokenSource) fetch(request *http.Request, into any) error {
	request.Header.Set("Accept", "application/json")
	response, err := s.Client.Do(request)
	if err != nil {
		return &TokenError{Code: "unreachable", Description: err.Error(), Retry: true}
	}
	defer response.Body.Close()
	body := io.LimitReader(response.Body, 1<<20)
	if response.StatusCode != http.StatusOK {
		var problem struct {
			Error       string `json:"error"`
			Description string `json:"error_description"`
		}
		_ = json.NewDecoder(body).Decode(&problem) // the status says enough where the body says nothing
		if problem.Error == "" {
			problem.Error = fmt.Sprintf("http_%d", response.StatusCode)
		}
		retry := response.StatusCode >= 500 || response.StatusCode == http.StatusTooManyRequests
		return &TokenError{Code: problem.Error, Description: problem.Description, Retry: retry}
	}
	return json.NewDecoder(body).Decode(into)
}

// Call sends a GET with a token, once more with a new one when the first was refused.
func Call(ctx context.Context, source *TokenSource, target string) (int, []byte, error) {
	for attempt := 1; ; attempt++ {
		token, err := source.Token(ctx)
		if err != nil {
			return 0, nil, err
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
		if err != nil {
			return 0, nil, err
		}
		request.Header.Set("Authorization", "Bearer "+token)
		response, err := source.Client.Do(request)
		if err != nil {
			return 0, nil, err
		}
		body, err := io.ReadAll(io.LimitReader(response.Body, 16<<20))
		response.Body.Close()
		challenge := response.Header.Get("WWW-Authenticate")
		if attempt == 1 && response.StatusCode == http.StatusUnauthorized && strings.Contains(challenge, `error="invalid_token"`) {
			source.Refused(token)
			continue
		}
		return response.StatusCode, body, err
	}
}

func run() error {
	if len(os.Args) != 4 {
		return errors.New("usage: atm-client AUDIENCE SCOPE URL")
	}
	secret, err := os.ReadFile(os.Getenv("ATM_CLIENT_SECRET_FILE"))
	if err != nil {
		return err
	}
	source := &TokenSource{
		Issuer: os.Getenv("ATM_ISSUER"), ClientID: os.Getenv("ATM_CLIENT_ID"), ClientSecret: strings.TrimSpace(string(secret)),
		Audience: os.Args[1], Scope: os.Args[2], Client: &http.Client{Timeout: 5 * time.Second},
	}
	status, body, err := Call(context.Background(), source, os.Args[3])
	if err != nil {
		return err
	}
	fmt.Println(string(body))
	if status >= 400 {
		return fmt.Errorf("%s answered %d", os.Args[3], status)
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
