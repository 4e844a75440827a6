import { timestampDate } from '@bufbuild/protobuf/wkt';
import { ConnectError } from '@connectrpc/connect';
import pg from 'pg';
import type { Lease } from '../gen/leasehold/v1/common_pb.js';
import type { PostgresLogin } from '../gen/leasehold/v1/credential_service_pb.js';
import { insist } from './teller.ts';

/** What the characters of the story do outside of the broker. */

/** Asks until there is an answer, for at most 10 s. */
export async function eventually<T>(ask: () => Promise<T | undefined>): Promise<T> {
  for (let tries = 0; tries < 100; tries++) {
    const answer = await ask();
    if (answer !== undefined) return answer;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error('no answer in time');
}

export function expiry(lease: Lease): string {
  return timestampDate(lease.expireTime!).toISOString();
}

/** The agent passes the id of its record on, so that the tool's can name it. */
export async function call(url: string, token: string, callId?: string): Promise<{ status: number; body: string }> {
  const response = await fetch(url, {
    headers: { authorization: `Bearer ${token}`, ...(callId === undefined ? {} : { 'leasehold-call': callId }) },
    signal: AbortSignal.timeout(5_000),
  });
  return { status: response.status, body: await response.text() };
}

export async function connect({ host, port, database, username, password }: PostgresLogin): Promise<pg.Client> {
  const client = new pg.Client({ host, port, database, user: username, password, connectionTimeoutMillis: 5_000 });
  // The broker ends this session when the task closes: that is the point, not an accident.
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

/** What becomes of the session that is open, and of whoever logs in anew: neither may get through. */
export async function lockedOut(session: pg.Client, login: PostgresLogin): Promise<{ session: string; login: string }> {
  const open = await session.query('SELECT 1').then(
    () => 'alive',
    (error: Error) => error.message,
  );
  insist(open !== 'alive', 'the open session is dead');
  const again = await connect(login).then(
    async (client) => {
      await client.end();
      return 'accepted';
    },
    (error: Error) => error.message,
  );
  insist(again !== 'accepted', 'a new login is refused');
  return { session: open, login: again };
}

export async function refusal(attempt: Promise<unknown>, word: string): Promise<string> {
  const message = await attempt.then(
    () => 'it was issued',
    (error: unknown) => ConnectError.from(error).rawMessage,
  );
  insist(message.includes(word), `a refusal that says "${word}", got: ${message}`);
  return message;
}
