import type { Message } from '@bufbuild/protobuf';
import { create } from '@bufbuild/protobuf';
import { BrokerError } from '../../domain/errors.ts';
import type { Clock } from '../../domain/time.ts';
import type { Observability } from '../../observability/observability.ts';
import type { AnyStreamHandler, AnyUnaryHandler, Service } from '../call.ts';
import { access } from './access.ts';
import type { DeadlineLimits } from './deadline.ts';
import { deadline } from './deadline.ts';
import type { Method } from './describe.ts';
import { describe } from './describe.ts';
import type { Door, Ending, Incoming } from './exchange.ts';
import { Cancelled, Exchange } from './exchange.ts';
import type { Authenticate } from './identity.ts';
import { identity } from './identity.ts';
import type { Next } from './interceptor.ts';
import { compose, isPromise } from './interceptor.ts';
import type { Load, LoadLimits } from './load.ts';
import { admission, createLoad, shuttingDown, streamsPerCaller } from './load.ts';
import type { RateLimits } from './rate.ts';
import { rate } from './rate.ts';
import { createReport } from './report.ts';
import { request } from './request.ts';
import { tenantShare, type TenantBoundsOf } from './tenant-share.ts';

export interface ChainLimits extends DeadlineLimits, RateLimits, LoadLimits {
  /** A stream whose reader takes no message for this long is cut off. */
  streamStallMs: number;
  perTenant: TenantBoundsOf;
}

export interface ChainOptions {
  services: readonly Service[];
  authenticate: Authenticate;
  clock: Clock;
  limits: ChainLimits;
  observability: Observability;
}

/** What every call passes, whichever door it came through (design §4). */
export interface Chain {
  readonly methods: readonly Method[];
  readonly load: Load;
  /** Runs a unary call; the door's `reply` is called exactly once, unless the caller goes away. */
  unary(incoming: Incoming, door: Door): Exchange;
  /**
   * Opens a stream. Its messages are made one by one, as the door takes them; it ends by throwing BrokerError, or
   * Cancelled when the caller has gone.
   */
  stream(incoming: Incoming, door: Door): { exchange: Exchange; messages: AsyncGenerator<Message, void, undefined> };
  /** The caller has gone away. */
  cancel(exchange: Exchange): void;
  /** Ends a call with a refusal; nothing happens when it has ended. */
  refuse(exchange: Exchange, error: BrokerError): void;
  /** Ends a call because of what was thrown at it outside the handler. */
  fail(exchange: Exchange, thrown: unknown): void;
  /** Refuses, with telemetry and an answer, what never became a call: its request could not be received. */
  reject(incoming: Incoming, door: Door, error: BrokerError): void;
  /** Takes on no more calls and tells all streams. Unary calls go on. */
  stop(): void;
  /** Ends the unary calls that are left. */
  abandon(): void;
}

export function createChain({ services, authenticate, clock, limits, observability }: ChainOptions): Chain {
  const methods = describe(services);
  const report = createReport(observability, methods);
  const load = createLoad();

  // From the outside inwards. Telemetry and error mapping are `end`: they see the result of all of it.
  const interceptors = [
    admission(load, limits),
    deadline(limits, clock, refuse),
    identity(authenticate),
    rate(limits, () => performance.now()),
    tenantShare(limits.perTenant, () => performance.now()),
    access,
    streamsPerCaller(load, limits.streamsPerCaller),
    request,
  ];
  const handle: Next = (exchange) => {
    // The caller may have gone while it was being identified: nothing is begun for nobody.
    if (exchange.ending !== undefined) throw new Cancelled('the call has ended');
    return (exchange.incoming.method.handler as AnyUnaryHandler | AnyStreamHandler)(exchange.request!, exchange);
  };
  const pipelines = new Map(methods.map((method) => [method, compose(interceptors, method, handle)]));

  function end(exchange: Exchange, ending: Ending): boolean {
    if (!exchange.settle(ending)) return false;
    load.unary.delete(exchange);
    load.streams.delete(exchange);
    leave(exchange);
    report.ended(exchange, ending, performance.now() - exchange.startedAt);
    return true;
  }

  function leave({ share, incoming }: Exchange): void {
    if (share === undefined) return;
    if (incoming.method.kind === 'unary') share.unary -= 1;
    else share.streams -= 1;
  }

  function refuse(exchange: Exchange, error: BrokerError): void {
    if (end(exchange, error) && exchange.incoming.method.kind === 'unary') exchange.door.reply(error, undefined);
  }

  function fail(exchange: Exchange, thrown: unknown): void {
    if (exchange.ending === undefined) refuse(exchange, report.refusal(exchange, thrown));
  }

  function succeed(exchange: Exchange, answer: unknown): void {
    if (exchange.ending !== undefined) return;
    let payload: unknown;
    try {
      payload = exchange.door.encode(create(exchange.incoming.method.output, answer as Message));
    } catch (thrown) {
      return fail(exchange, thrown);
    }
    if (end(exchange, 'ok')) exchange.door.reply(undefined, payload);
  }

  async function* messagesOf(exchange: Exchange): AsyncGenerator<Message, void, undefined> {
    const { method } = exchange.incoming;
    let iterator: AsyncIterator<object> | undefined;
    try {
      const opened = pipelines.get(method)!(exchange);
      const source = (
        isPromise(opened)
          ? await exchange.untilEnded<unknown>((resolve, reject) => void opened.then(resolve, reject))
          : opened
      ) as AsyncIterable<object>;
      iterator = source[Symbol.asyncIterator]();
      for (;;) {
        const pending = iterator.next();
        const next = await exchange.untilEnded<IteratorResult<object>>((resolve, reject) => {
          pending.then(resolve, reject);
        });
        if (next.done === true) break;
        const message = create(method.output, next.value as Message);
        const stalled = setTimeout(stall, limits.streamStallMs, exchange);
        try {
          yield message;
        } finally {
          clearTimeout(stalled);
        }
        if (exchange.ending !== undefined) break;
      }
      end(exchange, 'ok');
      if (exchange.ending instanceof BrokerError) throw exchange.ending;
    } catch (thrown) {
      if (exchange.ending instanceof BrokerError) throw exchange.ending;
      if (exchange.ending !== undefined) throw new Cancelled('the call has ended');
      const refusal = report.refusal(exchange, thrown);
      end(exchange, refusal);
      throw refusal;
    } finally {
      end(exchange, 'cancelled');
      // Not waited for: a handler that ignores its signal must not keep the stream.
      iterator?.return?.().catch(() => undefined);
    }
  }

  function stall(exchange: Exchange): void {
    const error = new BrokerError(
      'RATE_LIMITED',
      `The stream was not read for ${limits.streamStallMs} ms and is cut off. Open it again and keep reading.`,
    );
    if (end(exchange, error)) exchange.door.cut();
  }

  return {
    methods,
    load,
    unary(incoming, door) {
      const exchange = new Exchange(incoming, door, performance.now());
      try {
        const result = pipelines.get(incoming.method)!(exchange);
        if (isPromise(result)) {
          void result.then(
            (answer) => succeed(exchange, answer),
            (thrown: unknown) => fail(exchange, thrown),
          );
        } else {
          succeed(exchange, result);
        }
      } catch (thrown) {
        fail(exchange, thrown);
      }
      return exchange;
    },
    stream(incoming, door) {
      const exchange = new Exchange(incoming, door, performance.now());
      return { exchange, messages: messagesOf(exchange) };
    },
    cancel: (exchange) => void end(exchange, 'cancelled'),
    refuse,
    fail,
    reject(incoming, door, error) {
      end(new Exchange(incoming, door, performance.now()), error);
      door.reply(error, undefined);
    },
    stop() {
      load.stopping = true;
      for (const exchange of load.streams) refuse(exchange, shuttingDown());
    },
    abandon() {
      for (const exchange of [...load.unary, ...load.streams]) refuse(exchange, shuttingDown());
    },
  };
}
