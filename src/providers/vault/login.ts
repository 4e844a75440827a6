import type { Clock, Instant, Millis } from '../../domain/time.ts';
import type { VaultAnswer, VaultCall, VaultClient } from './client.ts';
import { asFailure, VaultFailure } from './failure.ts';

/** How the broker itself logs in. Secrets are read when they are needed, so that a file that was replaced counts. */
export type VaultLogin =
  /** `kubernetes` and `jwt`: a token that the platform, or SPIRE, keeps fresh in a file. */
  | { method: 'kubernetes' | 'jwt'; mount: string; role: string; jwt: () => string }
  /** The client certificate of the connection. */
  | { method: 'cert'; mount: string; role: string | undefined }
  | { method: 'approle'; mount: string; roleId: () => string; secretId: () => string }
  /** A token that somebody else, such as Vault Agent, keeps alive and replaces in a file. */
  | { method: 'tokenFile'; token: () => string };

export interface SessionEvents {
  loggedIn(method: string, lifeMs: Millis): void;
  failed(error: unknown): void;
}

export interface Session {
  /** One call as the broker. A token that Vault does not know any more is replaced by a new login, once. */
  call(call: Omit<VaultCall, 'token'>): Promise<VaultAnswer>;
  /** Renews, or logs in anew, while the present token still has a third of its life. */
  tick(signal: AbortSignal): Promise<void>;
  status(): { ready: boolean; detail: string };
}

interface Held {
  token: string;
  /** From when it is worth renewing; Infinity for one that does not end. */
  renewAt: Instant;
  endsAt: Instant;
  renewable: boolean;
}

interface Auth {
  client_token?: unknown;
  lease_duration?: unknown;
  renewable?: unknown;
}

/** How often a token's file is read at most. */
const fileAge: Millis = 1_000;
const shortestPause: Millis = 1_000;
const longestPause: Millis = 30_000;

/**
 * The broker's own session at one server. What it makes for tasks hangs on orphan tokens, so nothing of a task depends on how
 * long this one lives.
 */
export function createSession(client: VaultClient, login: VaultLogin, clock: Clock, events: SessionEvents): Session {
  let held: Held | undefined;
  let underWay: Promise<Held> | undefined;
  let failures = 0;
  let notBefore: Instant = 0;
  let problem = 'has not logged in yet';

  return {
    async call(call) {
      const { token } = await present(call.signal);
      try {
        return await client.call({ ...call, token });
      } catch (error) {
        if (asFailure(error)?.status !== 403 || (await isAlive(token, call.signal))) throw error;
        if (held?.token === token) held = undefined;
        const next = await present(call.signal);
        if (next.token === token) throw error;
        return await client.call({ ...call, token: next.token });
      }
    },

    async tick(signal) {
      if (held === undefined || login.method === 'tokenFile') {
        await present(signal);
        return;
      }
      if (clock.now() < held.renewAt) return;
      if (held.renewable && (await renew(held, signal))) return;
      // Not renewable, or near the most that it can have: the next one before this one ends.
      await logIn(signal);
    },

    status: () =>
      held !== undefined && clock.now() < held.endsAt
        ? { ready: true, detail: `logged in by ${login.method}` }
        : { ready: false, detail: problem },
  };

  async function present(signal: AbortSignal): Promise<Held> {
    const now = clock.now();
    if (held !== undefined && now < held.endsAt && (login.method !== 'tokenFile' || now < held.renewAt)) return held;
    return await logIn(signal);
  }

  /** Callers that need a login at the same moment share one. */
  async function logIn(signal: AbortSignal): Promise<Held> {
    const now = clock.now();
    if (underWay === undefined && now < notBefore) {
      throw new VaultFailure(`the broker is not logged in: ${problem}`, {
        outcome: 'unsent',
        retryAfterMs: notBefore - now,
      });
    }
    underWay ??= attempt().finally(() => (underWay = undefined));
    return await orAborted(underWay, signal);
  }

  async function attempt(): Promise<Held> {
    try {
      const next = await fresh(AbortSignal.timeout(10_000));
      const isNew = held?.token !== next.token;
      held = next;
      failures = 0;
      if (isNew) events.loggedIn(login.method, next.endsAt - clock.now());
      return next;
    } catch (error) {
      problem = error instanceof Error ? error.message : 'unknown';
      failures += 1;
      notBefore = clock.now() + Math.min(longestPause, shortestPause * 2 ** Math.min(failures - 1, 6));
      events.failed(error);
      // The file may be missing for the moment in which it is replaced, and the old token may live on.
      if (held !== undefined && clock.now() < held.endsAt) return held;
      throw error instanceof VaultFailure ? error : new VaultFailure(problem, { outcome: 'unsent' });
    }
  }

  async function fresh(signal: AbortSignal): Promise<Held> {
    const now = clock.now();
    if (login.method === 'tokenFile') {
      return { token: login.token(), renewAt: now + fileAge, endsAt: Infinity, renewable: false };
    }
    client.reload();
    const { body } = await client.call({
      method: 'POST',
      path: `auth/${login.mount}/login`,
      body: proof(login),
      lane: 'settle',
      signal,
    });
    const auth = body['auth'] as Auth | undefined;
    if (typeof auth?.client_token !== 'string') {
      throw new VaultFailure(`auth/${login.mount}/login: the answer holds no token`, { outcome: 'refused' });
    }
    return heldOf(auth.client_token, auth, now);
  }

  async function renew(current: Held, signal: AbortSignal): Promise<boolean> {
    const now = clock.now();
    try {
      const { body } = await client.call({
        method: 'POST',
        path: 'auth/token/renew-self',
        body: {},
        token: current.token,
        lane: 'settle',
        signal,
      });
      const next = heldOf(current.token, body['auth'] as Auth, now);
      // Less than before: it nears its most, and a new login is due.
      const enough = next.endsAt - now > (current.endsAt - current.renewAt) * 1.5;
      if (held === current) held = enough ? next : { ...next, renewable: false, renewAt: now };
      return enough;
    } catch (error) {
      const failure = asFailure(error);
      // Refused: it is gone, or may not be renewed. Otherwise it lives on, and is tried again at the next round.
      return failure?.status !== 403 && failure?.status !== 400 && clock.now() < current.endsAt - 1_000;
    }
  }

  /** A 403 says "not allowed" and "no such token" alike. */
  async function isAlive(token: string, signal: AbortSignal): Promise<boolean> {
    try {
      await client.call({ method: 'GET', path: 'auth/token/lookup-self', token, lane: 'settle', signal });
      return true;
    } catch (error) {
      const failure = asFailure(error);
      // Without the default policy a live token may not look at itself, and is told so in these very words.
      return failure?.status !== 403 || !/bad token|invalid token|permission denied/i.test(failure.said);
    }
  }
}

function heldOf(token: string, auth: Auth | undefined, now: Instant): Held {
  const life = typeof auth?.lease_duration === 'number' ? auth.lease_duration * 1_000 : 0;
  // Zero: a token that does not end, such as a root token in a test.
  if (life === 0) return { token, renewAt: Infinity, endsAt: Infinity, renewable: false };
  return { token, renewAt: now + (life * 2) / 3, endsAt: now + life, renewable: auth?.renewable === true };
}

function proof(login: Exclude<VaultLogin, { method: 'tokenFile' }>): object {
  switch (login.method) {
    case 'kubernetes':
    case 'jwt':
      return { role: login.role, jwt: login.jwt() };
    case 'cert':
      return login.role === undefined ? {} : { name: login.role };
    case 'approle':
      return { role_id: login.roleId(), secret_id: login.secretId() };
  }
}

async function orAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  const aborted = new Promise<never>((_, reject) => {
    const onAbort = () => reject(new VaultFailure('the login took too long', { outcome: 'unsent' }));
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
  });
  return await Promise.race([work, aborted]);
}
