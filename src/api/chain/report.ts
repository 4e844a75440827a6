import { randomBytes } from 'node:crypto';
import { BrokerError } from '../../domain/errors.ts';
import type { CountRpc, Emit, Observability } from '../../observability/observability.ts';
import { traceFields } from '../../observability/trace.ts';
import type { Method } from './describe.ts';
import type { Ending, Exchange } from './exchange.ts';

/** The outermost layer: turns whatever was thrown into what may be said, and tells operators the rest. */
export interface Report {
  /** The caller's view of a failure; its cause is logged here and goes no further. */
  refusal(exchange: Exchange, thrown: unknown): BrokerError;
  ended(exchange: Exchange, ending: Ending, durationMs: number): void;
}

export function createReport(observability: Observability, methods: readonly Method[]): Report {
  const { emit } = observability;
  const count = {
    grpc: new Map(methods.map((method) => [method, observability.rpc(method.name, 'grpc')])),
    http: new Map(methods.map((method) => [method, observability.rpc(method.name, 'http')])),
  } satisfies Record<string, Map<Method, CountRpc>>;

  return {
    refusal(exchange, thrown) {
      if (thrown instanceof BrokerError && thrown.code !== 'internal') {
        if (thrown.code === 'unavailable' && thrown.cause !== undefined) {
          emit('rpc.unavailable', { ...subject(exchange), reason: thrown.reason, cause: thrown.cause });
        }
        return thrown;
      }
      return incident(thrown, (number) =>
        emit('rpc.failed', { ...subject(exchange), incident: number, cause: thrown }),
      );
    },
    ended(exchange, ending, durationMs) {
      const code = typeof ending === 'string' ? ending : ending.code;
      const { method, door } = exchange.incoming;
      count[door].get(method)?.(code, durationMs);
      if (ending instanceof BrokerError) refused(emit, exchange, ending, durationMs);
      else if (observability.logs('rpc.finished')) emit('rpc.finished', { ...subject(exchange), code, durationMs });
    },
  };
}

function refused(emit: Emit, exchange: Exchange, { code, reason }: BrokerError, durationMs: number): void {
  emit('rpc.refused', { ...subject(exchange), code, reason, durationMs });
}

/** An error that says nothing of its cause but where to find it. */
export function incident(thrown: unknown, tell: (number: string) => void): BrokerError {
  const number = randomBytes(6).toString('hex');
  tell(number);
  return new BrokerError('INTERNAL', `The broker met a defect. Report incident ${number} to its operator.`, {
    metadata: { incident: number },
    cause: thrown,
  });
}

function subject(exchange: Exchange) {
  const { method, door } = exchange.incoming;
  return { method: method.name, door, workload: exchange.workload, ...traceFields(exchange.traceparent) };
}
