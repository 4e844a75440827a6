import type { Clock, Millis } from '../../domain/time.ts';
import { createBreaker, type Breaker } from './breaker.ts';
import { createVaultClient, type VaultClient } from './client.ts';
import { createSession, type Session, type VaultLogin } from './login.ts';

/** A Vault or OpenBao server, or cluster behind one address. */
export interface VaultServer {
  address: string;
  namespace?: string | undefined;
  tls: () => { ca?: string; cert?: string; key?: string };
  login: VaultLogin;
  /** Token role that makes the token of a task. */
  tokenRole: string;
  /** Connections for issuing; revocations have a quarter as many, and at least eight, of their own. */
  connections: number;
  /** Longest time that one issue may take. */
  issueTimeout: Millis;
  /** Longest time of one call of a settlement. */
  settleTimeout: Millis;
}

export interface Open {
  name: string;
  config: VaultServer;
  client: VaultClient;
  session: Session;
  breaker: Breaker;
}

export async function openServer(
  name: string,
  config: VaultServer,
  clock: Clock,
  events: {
    loggedIn(server: string, method: string, lifeMs: Millis): void;
    failed(server: string, error: unknown): void;
  },
): Promise<Open> {
  const client = await createVaultClient({
    address: config.address,
    namespace: config.namespace,
    tls: config.tls,
    connections: { issue: config.connections, settle: Math.max(8, Math.ceil(config.connections / 4)) },
    timeout: Math.max(config.issueTimeout, config.settleTimeout),
  });
  const session = createSession(client, config.login, clock, {
    loggedIn: (method, lifeMs) => events.loggedIn(name, method, lifeMs),
    failed: (error) => events.failed(name, error),
  });
  return { name, config, client, session, breaker: createBreaker(name, clock) };
}
