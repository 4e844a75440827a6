import { BrokerError } from '../../domain/errors.ts';
import type { Exchange } from './exchange.ts';
import type { Interceptor } from './interceptor.ts';

export interface LoadLimits {
  /** Unary calls in work at once, over all callers. */
  maxInFlight: number;
  /** Streams open at once, over all callers. */
  maxStreams: number;
}

/** Every call between its arrival and its end; what a graceful stop waits for. */
export interface Load {
  readonly unary: Set<Exchange>;
  readonly streams: Set<Exchange>;
  /** No call is taken on any more. */
  stopping: boolean;
}

export function createLoad(): Load {
  return { unary: new Set(), streams: new Set(), stopping: false };
}

export function shuttingDown(): BrokerError {
  return new BrokerError(
    'SHUTTING_DOWN',
    'This broker is stopping. Retry with the same request_id; another one answers.',
    {
      retryAfterMs: 100,
    },
  );
}

/** The outermost bound: refuses before anything is spent on the call. */
export function admission(load: Load, limits: LoadLimits): Interceptor {
  return ({ kind }, next) => {
    const live = kind === 'unary' ? load.unary : load.streams;
    const max = kind === 'unary' ? limits.maxInFlight : limits.maxStreams;
    return (exchange) => {
      if (load.stopping) throw shuttingDown();
      if (live.size >= max) {
        throw new BrokerError('RATE_LIMITED', 'The broker has as many calls in work as it takes. Retry later.', {
          retryAfterMs: 200,
        });
      }
      live.add(exchange);
      return next(exchange);
    };
  };
}

/** So that one caller cannot hold all streams. Counted over the streams that are open: there is nothing to clean up. */
export function streamsPerCaller(load: Load, max: number): Interceptor {
  return ({ kind }, next) => {
    if (kind === 'unary') return next;
    return (exchange) => {
      let held = 0;
      for (const other of load.streams) if (sameCaller(other, exchange)) held += 1;
      if (held > max) {
        throw new BrokerError('RATE_LIMITED', `This workload holds ${max} streams already. Close one first.`, {
          retryAfterMs: 1_000,
        });
      }
      return next(exchange);
    };
  };
}

function sameCaller({ caller: a }: Exchange, { caller: b }: Exchange): boolean {
  return a.workload === b.workload && a.tenant === b.tenant;
}
