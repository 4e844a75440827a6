import { sign } from 'node:crypto';
import type { KeyObject } from 'node:crypto';
import { expect } from 'vitest';
import { BrokerError } from '../../src/domain/errors.ts';
import type { ErrorReason } from '../../src/domain/errors.ts';
import type { Clock } from '../../src/domain/time.ts';

export interface ManualClock extends Clock {
  advance(ms: number): void;
}

/** Begins now (real issuers read the real time), on a whole second (tokens count those), and moves only when told. */
export function manualClock(start = Math.floor(Date.now() / 1000) * 1000): ManualClock {
  let now = start;
  return {
    now: () => now,
    advance(ms) {
      now += ms;
    },
  };
}

export interface Forgery {
  /** A text is used as it is: for what no JSON writer would write. */
  header: Record<string, unknown> | string;
  claims: Record<string, unknown> | string | Buffer;
  privateKey: KeyObject;
}

/** Signs anything with ES256, so that what a verifier refuses is refused for its content and not for its signature. */
export function forge({ header, claims, privateKey }: Forgery): string {
  const text = [header, claims].map((part) =>
    Buffer.from(typeof part === 'string' || Buffer.isBuffer(part) ? part : JSON.stringify(part)).toString('base64url'),
  );
  return `${text.join('.')}.${es256(text.join('.'), privateKey)}`;
}

export function es256(input: string, key: KeyObject): string {
  return sign('sha256', Buffer.from(input), { key, dsaEncoding: 'ieee-p1363' }).toString('base64url');
}

/** The refusal has the reason and a sentence like that, and repeats nothing of the token. */
export async function expectRefusal(outcome: Promise<unknown>, reason: ErrorReason, sentence: RegExp): Promise<void> {
  const error: unknown = await outcome.then(
    (value) => expect.fail(`accepted: ${JSON.stringify(value)}`),
    (refusal: unknown) => refusal,
  );
  if (!(error instanceof BrokerError)) throw error;
  expect({ reason: error.reason, message: error.message }).toEqual({
    reason,
    message: expect.stringMatching(sentence),
  });
}
