import { formatIssue, type Issue } from '../config/issue.ts';
import { exitCodes, type ExitName } from './exit-codes.ts';
import { printable } from './printable.ts';

export interface CliErrorDetails {
  /** google.rpc.Code in lower case, where a broker answered. */
  status?: string;
  /** Stable name: `ErrorInfo.reason` of the broker, or one of the command line's own. */
  reason?: string;
  /** What a retry has to carry so that nothing happens twice. */
  requestId?: string;
  violations?: readonly { field: string; description: string }[];
  metadata?: Readonly<Record<string, string>>;
  /** Mistakes in files, each with its place. */
  issues?: readonly Issue[];
  cause?: unknown;
}

/** The one error that a command throws on purpose: a sentence that says what to do next, and the exit code. */
export class CliError extends Error {
  readonly exit: ExitName;
  readonly details: CliErrorDetails;

  constructor(exit: ExitName, message: string, details: CliErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = 'CliError';
    this.exit = exit;
    this.details = details;
  }
}

/** `leasehold: <sentence> (<reason>; retry with --request-id …)`, on one line; then a line for each mistake in a file. */
export function humanError(error: CliError): string {
  const notes: string[] = [];
  if (error.details.reason !== undefined) notes.push(error.details.reason);
  if (error.details.requestId !== undefined) notes.push(`to retry: --request-id ${error.details.requestId}`);
  const first = `leasehold: ${error.message}${notes.length === 0 ? '' : ` (${notes.join('; ')})`}`;
  return [first, ...(error.details.issues ?? []).map((issue) => `  ${formatIssue(issue)}`)].map(printable).join('\n');
}

export function jsonError(error: CliError): string {
  const { status, reason, requestId, violations, metadata, issues } = error.details;
  return JSON.stringify({
    error: {
      reason: reason ?? error.exit,
      ...(status === undefined ? {} : { status }),
      message: error.message,
      exit_code: exitCodes[error.exit].code,
      ...(requestId === undefined ? {} : { request_id: requestId }),
      ...(violations === undefined || violations.length === 0 ? {} : { violations }),
      ...(metadata === undefined || Object.keys(metadata).length === 0 ? {} : { metadata }),
      ...(issues === undefined ? {} : { issues }),
    },
  });
}
