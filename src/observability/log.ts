import { redact } from './redact.ts';

export const levels = ['debug', 'info', 'warn', 'error', 'silent'] as const;
export type Level = (typeof levels)[number];

export interface LogOptions {
  /** Lines below this are not written. */
  level: Level;
  /** `json`: one object a line, for machines; `text`: for a person at a terminal. */
  format: 'json' | 'text';
  /** Receives one line with its newline. */
  write: (line: string) => void;
  /** For the time stamp. */
  now: () => number;
}

export interface Log {
  enabled(level: Exclude<Level, 'silent'>): boolean;
  write(level: Exclude<Level, 'silent'>, event: string, message: string, fields: object): void;
}

export function createLog({ level, format, write, now }: LogOptions): Log {
  const threshold = levels.indexOf(level);
  const render = format === 'json' ? renderJson : renderText;
  const enabled: Log['enabled'] = (wanted) => levels.indexOf(wanted) >= threshold;
  return {
    enabled,
    write(wanted, event, message, fields) {
      if (!enabled(wanted)) return;
      write(render(new Date(now()).toISOString(), wanted, event, message, redact(fields) as Record<string, unknown>));
    },
  };
}

type Render = (time: string, level: string, event: string, message: string, fields: Record<string, unknown>) => string;

const renderJson: Render = (time, level, event, message, fields) =>
  `${JSON.stringify({ time, level, event, message, ...fields })}\n`;

const renderText: Render = (time, level, event, message, fields) => {
  const rest = Object.entries(fields)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => ` ${name}=${typeof value === 'string' ? quote(value) : JSON.stringify(value)}`)
    .join('');
  return `${time} ${level.toUpperCase().padEnd(5)} ${event}: ${message}${rest}\n`;
};

/** A value with a newline must not be able to look like a line of its own. */
function quote(value: string): string {
  return /^[\w./:@+-]+$/.test(value) ? value : JSON.stringify(value);
}
