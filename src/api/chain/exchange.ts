import type { DescMethod, Message } from '@bufbuild/protobuf';
import type { Caller } from '../../domain/caller.ts';
import type { BrokerError } from '../../domain/errors.ts';
import type { Instant } from '../../domain/time.ts';
import type { Call } from '../call.ts';
import type { Method } from './describe.ts';

/** What a door does for one call. */
export interface Door {
  /** Makes the answer ready to be sent; throws when it is too large. Its result is given to `reply`. */
  encode(message: Message): unknown;
  /** Answers a unary call, exactly once. */
  reply(error: BrokerError | undefined, payload: unknown): void;
  /** Drops the connection's stream at once: its reader does not read. */
  cut(): void;
}

/** What a door knows of a call when it hands it to the chain. */
export interface Incoming {
  method: Method;
  door: 'grpc' | 'http';
  /** The `authorization` header as received. */
  authorization: string | undefined;
  /** Milliseconds that the caller gives the call; undefined when it set no deadline. */
  timeoutMs: number | undefined;
  traceparent: string | undefined;
  /** Thumbprint of the connection's client certificate; worked out for those who ask. */
  clientCertificate: () => string | undefined;
  /** The request, still to be parsed where the door can wait with that until the caller is known. */
  decode: () => Message;
}

/** What one tenant has in work now. Every call that was counted leaves it exactly once, at its end. */
export interface TenantShare {
  unary: number;
  streams: number;
}

/** How a call ended: refused, or 'cancelled' by its caller, or well. */
export type Ending = BrokerError | 'cancelled' | 'ok';

/** Thrown into what still waits for a call that its caller has given up. */
export class Cancelled extends Error {
  override readonly name = 'Cancelled';
}

/**
 * One call on its way through the chain, and what its handler sees of it. A class with all fields set at once: it is made
 * for each call, and everything rare about it (signal, timer) is made on demand.
 */
export class Exchange implements Call {
  readonly incoming: Incoming;
  readonly door: Door;
  readonly startedAt: number;
  readonly traceparent: string | undefined;
  caller: Caller;
  deadline: Instant = Infinity;
  request: Message | undefined = undefined;
  timer: NodeJS.Timeout | undefined = undefined;
  ending: Ending | undefined = undefined;
  /** Where this call is counted until its end. */
  share: TenantShare | undefined = undefined;
  /** Set while the chain waits for the next message of a stream, or for the door to take one. */
  #interrupt: ((reason: Error) => void) | undefined = undefined;
  #abort: AbortController | undefined = undefined;

  constructor(incoming: Incoming, door: Door, startedAt: number) {
    this.incoming = incoming;
    this.door = door;
    this.startedAt = startedAt;
    this.traceparent = incoming.traceparent;
    this.caller = nobody;
  }

  get method(): DescMethod {
    return this.incoming.method.desc;
  }

  get clientCertificate(): () => string | undefined {
    return this.incoming.clientCertificate;
  }

  get signal(): AbortSignal {
    if (this.#abort === undefined) {
      this.#abort = new AbortController();
      if (this.ending !== undefined && this.ending !== 'ok') this.#abort.abort(reasonOf(this.ending));
    }
    return this.#abort.signal;
  }

  /** The workload, once known; for logs and rate bounds. */
  get workload(): string {
    return this.caller.workload;
  }

  /** Fixes how the call ended; false when that was decided before. */
  settle(ending: Ending): boolean {
    if (this.ending !== undefined) return false;
    this.ending = ending;
    clearTimeout(this.timer);
    if (ending !== 'ok') {
      this.#abort?.abort(reasonOf(ending));
      this.#interrupt?.(reasonOf(ending));
    }
    this.#interrupt = undefined;
    return true;
  }

  /** Waits for what `start` waits for, or for the end of the call. One at a time: a stream is a sequence. */
  untilEnded<T>(start: (resolve: (value: T) => void, reject: (reason: unknown) => void) => void): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.ending === undefined) this.#interrupt = reject;
      else reject(reasonOf(this.ending));
      // Begun in either case, so that a failure of what is waited for is always met by a handler.
      start(resolve, reject);
    });
  }
}

function reasonOf(ending: Ending): Error {
  return ending instanceof Error ? ending : new Cancelled('the call has ended');
}

/** Stands for the caller before identity is known; no interceptor after identity ever sees it. */
const nobody: Caller = {
  workload: '',
  tenant: '',
  kind: 'jwt-svid',
  issuer: '',
  expiresAt: 0,
  roles: new Set(),
  agents: new Set(),
};
