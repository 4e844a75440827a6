import { Code, ConnectError } from '@connectrpc/connect';
import { durationMs } from '@bufbuild/protobuf/wkt';
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from '../gen/google/rpc/error_details_pb.js';
import { CliError } from './cli-error.ts';
import { exitNameOf } from './exit-codes.ts';

const statusNames = Object.fromEntries(
  Object.entries(Code)
    .filter(([, value]) => typeof value === 'number')
    .map(([name, value]) => [value, name.replace(/(?<=[a-z])([A-Z])/g, '_$1').toLowerCase()]),
);

/** A failed call, as the command line says it. Without an answer of the broker, the sentence is ours. */
export function remoteError(thrown: unknown, server: string, requestId: string | undefined): CliError {
  if (thrown instanceof CliError) return thrown;
  const error = ConnectError.from(thrown);
  const info = error.findDetails(ErrorInfoSchema)[0];
  const violations = error
    .findDetails(BadRequestSchema)
    .flatMap((bad) => bad.fieldViolations)
    .map(({ field, description }) => ({ field, description }));
  const status = statusNames[error.code] ?? 'unknown';
  const exit = exitNameOf(status, info?.reason);
  const retriable = exit === 'unavailable' || exit === 'deadline' || exit === 'unexpected';
  return new CliError(exit, info === undefined ? unanswered(error, server) : sentence(error.rawMessage, violations), {
    status,
    reason: info?.reason ?? ownReasons[error.code] ?? 'UNEXPECTED',
    violations,
    metadata: { ...info?.metadata },
    cause: thrown,
    ...(retriable && requestId !== undefined ? { requestId } : {}),
  });
}

const ownReasons: Partial<Record<Code, string>> = {
  [Code.Unavailable]: 'SERVER_UNREACHABLE',
  [Code.DeadlineExceeded]: 'DEADLINE_EXCEEDED',
};

function unanswered(error: ConnectError, server: string): string {
  if (error.code === Code.Unavailable) {
    return `no broker answers at ${server} (${error.rawMessage}); check --server or LEASEHOLD_SERVER, and that it runs`;
  }
  if (error.code === Code.DeadlineExceeded) {
    return `${server} did not answer in time; try again, or give it longer with --timeout`;
  }
  const cause = error.cause instanceof Error ? error.cause : error;
  const code = (cause as NodeJS.ErrnoException).code ?? '';
  if (/CERT|SELF_SIGNED|ISSUER|ALTNAME|UNABLE_TO_VERIFY/.test(code)) {
    return `the certificate of ${server} is not trusted (${cause.message}); name its authority with --ca-file`;
  }
  return `${server} answered something that is not a broker’s answer (${error.rawMessage}); check --server`;
}

function sentence(message: string, violations: readonly { field: string; description: string }[]): string {
  const unnamed = violations.filter(({ field }) => !message.includes(field));
  return [message, ...unnamed.map(({ field, description }) => `${field}: ${description}`)].join('; ');
}

/** Milliseconds that the broker asks to wait (google.rpc.RetryInfo). */
export function retryDelay(error: unknown): number | undefined {
  const delay = ConnectError.from(error).findDetails(RetryInfoSchema)[0]?.retryDelay;
  return delay === undefined ? undefined : durationMs(delay);
}
