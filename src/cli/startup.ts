import { resolve } from 'node:path';
import { Option, type Command } from 'commander';
import type { Issue } from '../config/issue.ts';
import { CliError } from './cli-error.ts';

export interface ConfigOptions {
  config: string;
}

export function withConfig(command: Command): Command {
  return command.addOption(
    new Option('--config <file>', 'the broker’s configuration')
      .env('LEASEHOLD_CONFIG')
      .default('leasehold.yaml')
      .argParser((text) => resolve(text)),
  );
}

/** What goes wrong before anything is served, with the exit code that tells a supervisor whether trying again helps. */
export async function startup<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (thrown) {
    if (thrown instanceof CliError || !(thrown instanceof Error)) throw thrown;
    const { issues } = thrown as { issues?: readonly Issue[] };
    if (thrown.name === 'ConfigError' && issues !== undefined) throw configInvalid(issues, thrown);
    throw databaseError(thrown) ?? thrown;
  }
}

export function configInvalid(issues: readonly Issue[], cause?: unknown): CliError {
  const many = issues.length === 1 ? 'a mistake' : `${issues.length} mistakes`;
  return new CliError('configInvalid', `the configuration has ${many}; mend what is listed and try again`, {
    reason: 'CONFIG_INVALID',
    issues,
    cause,
  });
}

function databaseError(error: Error): CliError | undefined {
  const code = String((error as { code?: unknown }).code ?? '');
  if (code === 'DATABASE_NEWER') return new CliError('databaseNewer', error.message, { reason: code, cause: error });
  if (code === 'DATABASE_BEHIND') return new CliError('databaseBehind', error.message, { reason: code, cause: error });
  // Node's network errors, and PostgreSQL's classes 08 (connection), 28 (login), 3D (no such database), 57P (stopping).
  const text = error instanceof AggregateError ? error.errors.map(String).join('; ') : error.message;
  if (/^(ECONN|ENOTFOUND|EAI_|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|08|28|3D|57P)/.test(code)) {
    return new CliError('unavailable', `the database cannot be used (${text}); check its address and login`, {
      reason: 'STORAGE_UNAVAILABLE',
      cause: error,
    });
  }
  if (code === '42501') {
    return new CliError(
      'permissionDenied',
      `the database login may not do this (${text}); use one that may create schemas and roles`,
      {
        reason: 'DATABASE_PERMISSION',
        cause: error,
      },
    );
  }
  return undefined;
}
