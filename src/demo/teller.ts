/** Tells the story: sentences for a person, or one JSON object per step for a program. */
export interface Teller {
  /** Runs one step. A step that throws is told as failed, and the story goes on where it can. */
  step<T extends object>(name: string, explanation: string, work: () => Promise<T>): Promise<T>;
  /** Whether every step so far was ok. */
  ok(): boolean;
}

/** A step's own claim did not hold. */
export function insist(condition: boolean, claim: string): asserts condition {
  if (!condition) throw new Error(`expected: ${claim}`);
}

export function createTeller(json: boolean, write: (line: string) => void): Teller {
  let count = 0;
  let allOk = true;
  return {
    ok: () => allOk,
    step: async (name, explanation, work) => {
      count += 1;
      if (!json) write(`\n${count}. ${explanation}`);
      try {
        const facts = await work();
        if (json) write(JSON.stringify({ step: name, ok: true, ...facts }));
        else for (const [key, value] of Object.entries(facts)) write(`   ${key.padEnd(12)} ${readable(value)}`);
        return facts;
      } catch (error) {
        allOk = false;
        const message = error instanceof Error ? error.message : String(error);
        write(json ? JSON.stringify({ step: name, ok: false, error: message }) : `   FAILED       ${message}`);
        throw error;
      }
    },
  };
}

function readable(value: unknown): string {
  if (Array.isArray(value)) return value.map((item) => `\n     - ${readable(item)}`).join('');
  if (value !== null && typeof value === 'object') {
    return Object.entries(value)
      .filter(([, field]) => field !== undefined && field !== '')
      .map(([key, field]) => `${key}=${String(field)}`)
      .join('  ');
  }
  return String(value);
}
